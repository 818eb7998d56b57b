"""An adapter folder: three files, and what each tensor name in it means.

    adapter_config.json         PEFT's: type, rank, which modules           read by plain PEFT and by this package
    adapter_model.safetensors   LoRA, biases, head
    spafit_config.json          the sidecar: strategy, base, labels, task   read by this package alone

Tensor names are PEFT's: `base_model.model.<module>.<part>`. A trained bias is stored in one of four forms:

    absolute    `<module>.bias`            base bias + delta; plain PEFT sets it in place   every module has a bias
    lora-bias   `<module>.lora_B.bias`     delta / scaling; plain PEFT adds it after LoRA B   no norm has a delta
    mixed       the first where the module has a bias, the second where it has none         some have, norms too
    native      `<module>.lora_delta`      the delta itself; only this package reads it     always possible

Experts that are one tensor for all have `<module>.gate_up_proj_bias` and the like in the place of a bias.
LoRA on experts is that of the wrappers that PEFT puts around their module (`spafit_hf.architecture.experts`).
A bottleneck adapter is `<module>.lora_down` and `.lora_up`, each with weight and bias, in a native folder alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.architecture import find_head
from spafit_hf.architecture.experts import BIAS_ENDING
from spafit_hf.architecture.new import outside_parameters
from spafit_hf.files import Fields
from spafit_hf.names import MAX_LABEL, MAX_LABELS, SIDECAR_FILE
from spafit_hf.words import SpafitError

KEY_PREFIX = "base_model.model."
SIDECAR_FORMAT = 1

#: Parts of a bottleneck adapter.
BOTTLENECK_PARTS = ("lora_down.weight", "lora_down.bias", "lora_up.weight", "lora_up.bias")

#: Endings of tensor names that belong to an adapter, longest first where one ends another.
PARTS = (
    *BOTTLENECK_PARTS,
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_delta",
    "base_layer.bias",
    "bias",
)

FORMS = ("absolute", "lora-bias", "mixed", "native")
SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
"""Of a configuration, where they are numbers: LXMERT counts its layers by their kind."""


class AdapterError(SpafitError):
    """An adapter folder that cannot be written, read, or used on this base; the message says why."""


@dataclass(frozen=True)
class BaseFacts:
    """Which base an adapter belongs to: its name, and what identifies it whatever its name."""

    name_or_path: str | None = None
    revision: str | None = None
    model_type: str | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    vocab_size: int | None = None
    #: dtype name -> SHA-256 of the base's vectors (biases, norm weights, first embeddings), cast to that dtype.
    vectors: dict[str, str] = field(default_factory=dict)

    def difference(self, other: BaseFacts) -> str | None:
        """What tells this base (an adapter's) from another (the loaded one) apart, as a sentence; None if nothing."""
        for name in ("model_type", *SIZES):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None and theirs is not None and mine != theirs:
                return f"its {name} is {theirs}, the adapter was trained on a base with {mine}"
        if self.vectors and other.vectors and not set(self.vectors.values()) & set(other.vectors.values()):
            return "its biases, norm weights and embeddings are not those that the adapter was trained on"
        return None


@dataclass(frozen=True)
class Sidecar:
    """What `spafit_config.json` holds: the facts that PEFT's own configuration has no place for."""

    form: str
    strategy: dict[str, Any] | None = None
    lora_modules: tuple[str, ...] = ()
    bias_modules: tuple[str, ...] = ()
    labels: dict[str, Any] | None = None
    base: BaseFacts = field(default_factory=BaseFacts)
    task: dict[str, Any] = field(default_factory=dict)
    spafit_hf_version: str = ""
    format: int = SIDECAR_FORMAT

    def to_json(self) -> str:
        """The file's text. Equal facts give equal bytes."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, data: Any) -> Sidecar:
        """Inverse of `to_json`, parsed; an AdapterError for another format, and for fields that are not of the right
        type."""
        if not isinstance(data, dict) or data.get("format") != SIDECAR_FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise AdapterError(
                f"{SIDECAR_FILE} has format {found!r}; this version reads format {SIDECAR_FORMAT}. "
                "Upgrade spafit-hf, or delete the file and read the folder without it."
            )
        sidecar: Sidecar = Fields(AdapterError, most_others=20_000, complete=True).read(cls, data, SIDECAR_FILE)
        if sidecar.form not in FORMS:
            raise AdapterError(f"{SIDECAR_FILE}: form is {sidecar.form!r}; allowed are {list(FORMS)}.")
        check_labels(sidecar.labels, SIDECAR_FILE)
        return sidecar


def check_labels(labels: Any, file: str) -> None:
    """Refuse labels in a file that are not of the form of `SpafitConfig.labels`, too many, or too long."""
    if labels is None:
        return
    good = (
        isinstance(labels, dict)
        and set(labels) == {"num_labels", "id2label", "problem_type"}
        and isinstance(labels["id2label"], dict)
        and 0 < len(labels["id2label"]) <= MAX_LABELS
        and set(labels["id2label"]) == {str(index) for index in range(len(labels["id2label"]))}
        and all(isinstance(name, str) and len(name) <= MAX_LABEL for name in labels["id2label"].values())
        and labels["num_labels"] == len(labels["id2label"])
        and labels["problem_type"] in (None, "regression", "single_label_classification", "multi_label_classification")
    )
    if not good:
        raise AdapterError(
            f"{file}: labels must hold num_labels, problem_type, and id2label with at most {MAX_LABELS:,} names of "
            f"{MAX_LABEL} characters; got {labels!r:.200}. Save the adapter again."
        )


def endings(module: str) -> Iterator[str]:
    """The names by which a list of PEFT's may mean a module: its full name, and each end of it after a dot."""
    while module:
        yield module
        module = module.partition(".")[2]


def parents(path: str) -> Iterator[str]:
    """The modules that something lies in, by its name: the innermost first."""
    while path := path.rpartition(".")[0]:
        yield path


@dataclass(frozen=True)
class TensorName:
    """A tensor's name in an adapter file, taken apart."""

    module: str
    part: str

    def __str__(self) -> str:
        return f"{KEY_PREFIX}{self.module}.{self.part}"

    @classmethod
    def parse(cls, key: str) -> TensorName | None:
        """The module and the part of it that a key names; None if it names no part of an adapter."""
        if not key.startswith(KEY_PREFIX):
            return None
        path = key.removeprefix(KEY_PREFIX)
        for part in PARTS:
            module = path.removesuffix(f".{part}")
            if module and module != path:
                return cls(module, part)
        module, _, part = path.rpartition(".")
        return cls(module, part) if module and part.endswith(BIAS_ENDING) else None


def facts_of_plain(plain: nn.Module) -> BaseFacts:
    """What identifies a loaded base, from the plain model itself or a view of it.

    The digest covers the one-dimensional parameters inside numbered layers and a corner of the embeddings: few bytes,
    yet no two models share them. It is taken in three dtypes, so that a base loaded in half precision is still
    recognized.
    """
    config = getattr(plain, "config", None)
    return BaseFacts(
        name_or_path=getattr(config, "_name_or_path", None) or None,
        revision=getattr(config, "_commit_hash", None),
        model_type=getattr(config, "model_type", None),
        **{name: size if isinstance(size := getattr(config, name, None), int) else None for name in SIZES},
        vectors=_digests(plain),
    )


_NUMBERED = re.compile(r"\.\d+\.")


def _digests(base: nn.Module) -> dict[str, str]:
    new = set(outside_parameters(base))  # drawn at random in each process, as a head is
    head = tuple(f"{name}." for name in find_head(base)[0])
    vectors = [
        parameter.detach()
        for name, parameter in base.named_parameters()
        if parameter.dim() == 1
        and parameter.is_floating_point()
        and _NUMBERED.search(f".{name}")
        and not (name in new or name.startswith(head))
    ]
    # Models that were never trained all have biases of 0 and norm weights of 1, but not the same embeddings.
    vectors += [table.detach()[:64] for table in _embeddings(base) if table.is_floating_point()]
    if not vectors or any(vector.is_meta for vector in vectors):
        return {}
    # A base loaded in a narrow dtype cannot tell what it was before, so wider digests than its own mean nothing.
    widths = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
    loaded = vectors[0].dtype
    dtypes = [loaded] if loaded in (torch.float16, torch.bfloat16) else list(widths)
    vectors = [vector.reshape(-1) for vector in vectors]
    if len({(vector.dtype, vector.device) for vector in vectors}) == 1:
        vectors = [torch.cat(vectors)]  # hundreds of casts take longer than the digest
    digests = {}
    for dtype in dtypes:
        flat = torch.cat([vector.to(device="cpu", dtype=dtype) for vector in vectors])
        # Through int16/int32: numpy has no bfloat16, and the bits are what is compared.
        bits = flat.view(torch.int32 if dtype == torch.float32 else torch.int16).numpy()
        digests[widths[dtype]] = hashlib.sha256(bits.tobytes()).hexdigest()
    return digests


def _embeddings(base: nn.Module) -> list[nn.Parameter]:
    if not isinstance(base, PreTrainedModel):
        return []
    try:
        return list(base.get_input_embeddings().parameters())[:1]
    except NotImplementedError:  # what transformers raises where it finds none
        return []
