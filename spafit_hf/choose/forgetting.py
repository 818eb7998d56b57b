"""What fine-tuned models forgot of their base: the base as its checkpoint has it, against each of them.

    FOLDER of an adapter --> base and adapter --+-- switched on ---+
                                                +-- switched off --+--> tensors, drift, likelihood, transfer
    FOLDER of a model ------------------------------ as it is -----+
    BASE ------------------> read from its checkpoint, no adapter near it: what all are held against

All in fp32, whatever they were saved in, in eval mode, on the same batches of tokens from the base's tokenizer.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from spafit_hf.adapter import load_adapter, load_base
from spafit_hf.adapter.load import local_folder
from spafit_hf.adapter.tokenizer import base_tokenizer
from spafit_hf.adapter.verify import look_at
from spafit_hf.architecture import find_architecture
from spafit_hf.architecture.new import loading_quietly, new_parameters
from spafit_hf.card.facts import FACTS_BOUNDS
from spafit_hf.card.forgetting import Forgetting, Likelihood, Row, weights_digest
from spafit_hf.choose.drift import Drift
from spafit_hf.choose.likelihood import Logits, likelihood, masked_rows, reading_through
from spafit_hf.choose.reader import batches, encode, reader_of
from spafit_hf.choose.transfer import predictions, probe_of, transfer
from spafit_hf.files import read_json
from spafit_hf.hub import hub_is_away
from spafit_hf.names import CONFIG_FILE, published_base, resolve_base
from spafit_hf.predictor.base import longest
from spafit_hf.run import RunData
from spafit_hf.run.base import fit_tokenizer
from spafit_hf.tuner.plain import base_of, plain_view
from spafit_hf.words import SpafitError, first_line

SEED = 0


@dataclass(frozen=True)
class Reference:
    """The base, from its checkpoint."""

    name: str
    """As it was given, or as an adapter names it."""
    source: str
    revision: str | None
    model: Any
    tokenizer: Any
    head: str
    """"masked", "causal", or "" where its checkpoint has no language-model head."""

    @property
    def shown(self) -> str:
        """What others know it by: of a folder of this machine its name."""
        name = published_base(self.name)
        return Path(name).resolve().name if Path(name).is_dir() else name


def measure(
    folders: Mapping[str, str],
    base: str | None,
    origin: str,
    texts: Sequence[str],
    probes: Sequence[RunData] = (),
    *,
    max_length: int = 128,
) -> Forgetting:
    """Measure what models forgot.

    Args:
        folders: what a row is called -> folder or repository of an adapter, or folder of a whole model.
        base: what all of them were tuned from; None for what the first adapter names.
        origin: where the texts are from, for a reader.
        texts: at least two.
        probes: other tasks; the first evaluation split of each.
        max_length: tokens of a text; longer ones lose their end.

    Raises:
        ValueError: for a folder or base that cannot be loaded, or models that are not of this base.
    """
    places = {name: local_folder(source) for name, source in folders.items()}
    reference = load_reference(*_base_of(places, base))
    tokenizer, model = reference.tokenizer, reference.model
    max_length = longest(model, tokenizer, max_length)
    rows, cut = encode(tokenizer, texts, max_length)
    asked = masked_rows(rows, tokenizer.mask_token_id, SEED) if reference.head == "masked" else rows
    tasks = []
    for data in probes:
        split = data.text.splits[data.text.evaluation_splits[0]]
        tasks.append(
            probe_of(data, tuple(encode(tokenizer, split[name][:], max_length)[0] for name in data.text.columns))
        )
    reader, device = reader_of(model), model.device
    before = [predictions(task, reader, tokenizer, device, SEED) for task in tasks]
    found = []
    for name, place in places.items():
        digest = weights_digest(place)
        for state, tuned in _states(place, reference):
            tensors, equal, distance = _compare(base_of(tuned), reference, name)
            own = reader_of(tuned)
            if len(own.layers) != len(reader.layers):
                counts = f"{len(own.layers)} layers, {reference.shown} {len(reader.layers)}"
                raise SpafitError(f"{name} has {counts}; name another base with --base.")
            drifts = [Drift() for _ in reader.layers]
            for _, batch in batches(tokenizer, rows, device):
                for drift, old, new in zip(drifts, reader.states(batch)[1:], own.states(batch)[1:], strict=False):
                    drift.add(old, new)
            after = [predictions(task, own, tokenizer, device, SEED) for task in tasks]
            made = _likelihood(reference, tuned, own.body, asked) if reference.head else None
            found.append(
                Row(
                    name=name,
                    state=state,
                    weights=digest,
                    tensors=tensors,
                    equal_tensors=equal,
                    distance=distance,
                    frozen=_frozen(tuned) if state != "whole" else 0,
                    layers=tuple(drift.result() for drift in drifts),
                    likelihood=made,
                    transfers=tuple(transfer(*each, SEED) for each in zip(tasks, before, after, strict=True)),
                )
            )
    return Forgetting(
        base=reference.shown,
        text=origin,
        texts=len(rows),
        cut=cut,
        tokens=sum(len(row["input_ids"]) for row in rows),
        max_length=max_length,
        seed=SEED,
        note=NOTES["writes" if model.config.is_encoder_decoder else reference.head],
        rows=tuple(found),
    )


HEADS = "The head is the base's, for a model that was tuned as a language model its own."
NOTES = {
    "": "Its checkpoint has no language-model head, so likelihoods were not measured.",
    "writes": "Of an encoder-decoder the encoder was read, and likelihoods were not measured.",
    "masked": "Log-likelihood: of a masked token, all others seen; up to eight in a text. " + HEADS,
    "causal": "Log-likelihood: of a token after those before it. " + HEADS,
}


def load_reference(name: str, revision: str | None = None) -> Reference:
    """The base from its checkpoint, with the language-model head that it holds, if it holds one.

    Raises:
        ValueError: when it cannot be loaded, or comes without a tokenizer.
    """
    source = resolve_base(name)
    where = {"revision": revision, "local_files_only": hub_is_away(source)}
    try:
        config = AutoConfig.from_pretrained(source, **where, trust_remote_code=False)
    except Exception as error:  # on broken files transformers raises whatever it stumbles over
        raise SpafitError(f"the base {name!r} cannot be loaded: {first_line(error)}") from error
    kinds = {
        "masked": (AutoModelForMaskedLM, transformers.MODEL_FOR_MASKED_LM_MAPPING),
        "causal": (AutoModelForCausalLM, transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    }
    head = next((key for key, (_, known) in kinds.items() if type(config) in known), "")
    if config.is_encoder_decoder:
        head = ""
    model, _ = _load(kinds[head][0] if head else AutoModel, source, revision)
    inside = f"{model.base_model_prefix}."
    if any(not key.startswith(inside) for key in new_parameters(model)):
        head = ""
    tokenizer = base_tokenizer(source, **where)
    if tokenizer is None:
        raise SpafitError(f"the base {name!r} comes without a tokenizer; give one that has one: --base FOLDER.")
    tokenizer.padding_side = "right"
    fit_tokenizer(model, tokenizer)
    if head == "masked" and tokenizer.mask_token_id is None:
        raise SpafitError(f"the tokenizer of {name!r} has no mask token; set one in its tokenizer_config.json.")
    return Reference(name, source, revision, model, tokenizer, head)


def _load(kind: Any, source: str, revision: str | None, **more: Any) -> tuple[Any, dict[str, Any]]:
    try:
        with loading_quietly():
            model, report = kind.from_pretrained(
                source, revision=revision, dtype=torch.float32, trust_remote_code=False, output_loading_info=True,
                local_files_only=hub_is_away(source), **more,
            )  # fmt: skip
    except Exception as error:  # as above
        raise SpafitError(f"{source} cannot be loaded: {first_line(error)}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), report


def _base_of(places: Mapping[str, Path], base: str | None) -> tuple[str, str | None]:
    """Name and revision of the base."""
    named = [look_at(place).base for place in places.values() if (place / CONFIG_FILE).exists()]
    name = base or next((facts.name_or_path for facts in named if facts.name_or_path), None)
    if name is None:
        raise SpafitError(
            f"{next(iter(places.values()))} does not name what it was tuned from; give it: --base FOLDER."
        )
    revision = next((facts.revision for facts in named if facts.name_or_path == name), None)
    return name, None if Path(name).is_dir() else revision


def _states(place: Path, reference: Reference) -> Iterator[tuple[str, nn.Module]]:
    """An adapter's two states, or the whole model."""
    if (place / CONFIG_FILE).exists():
        plain = load_base(reference.name, place).float()
        plain.to(reference.model.device)
        model = load_adapter(plain, place).eval()
        yield "on", model
        with model.disable_adapter():
            yield "off", model
        return
    config = read_json(place / "config.json", FACTS_BOUNDS, SpafitError)
    name = next(iter(config.get("architectures") or ()), None) if isinstance(config, dict) else None
    kind = getattr(transformers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise SpafitError(f"{place / 'config.json'} names the class {name!r:.80}, which is no model of transformers.")
    yield "whole", _load(kind, str(place), None)[0]


def _likelihood(reference: Reference, tuned: Any, body: nn.Module, rows: Sequence[Any]) -> Likelihood:
    plain: Any = base_of(tuned)
    own_head = plain.get_output_embeddings() is not None

    def before(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return reference.model(**batch).logits

    def through(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with reading_through(reference.model, body):
            return reference.model(**batch).logits

    after: Logits = (lambda batch: plain(**batch).logits) if own_head else through
    return likelihood(before, after, reference.tokenizer, rows, reference.model.device)


def _compare(plain: Any, reference: Reference, name: str) -> tuple[int, int, float]:
    """How many tensors the checkpoint of the base has in a model of this class, how many of them the model has bit for
    bit, and the norm of all differences over that of all of them."""
    if plain.config.is_encoder_decoder and not reference.model.config.is_encoder_decoder:
        raise SpafitError(
            f"{name} is an encoder-decoder and {reference.shown} is none; what was made of copies of an encoder is "
            "not measured: leave it out, or name another base with --base."
        )
    again = {"config": copy.deepcopy(plain.config), "ignore_mismatched_sizes": True}
    fresh, report = _load(type(plain), reference.source, reference.revision, **again)
    view, mismatched = plain_view(plain), {key for key, *_ in report["mismatched_keys"]}
    absent = mismatched.union(report["missing_keys"])
    # A tensor with two names, such as tied embeddings, counts once.
    stored = {tensor.data_ptr(): (key, tensor) for key, tensor in fresh.state_dict().items() if key not in absent}
    heads = tuple(f"{head}." for head in find_architecture(view).head)
    odd = sorted(key for key in mismatched if not key.startswith(heads))
    if odd or not stored:
        found = f"{odd[0]} has another shape there" if odd else "it has none of its tensors"
        raise SpafitError(f"{name} is not of the base {reference.shown}: {found}; name another with --base.")
    state, equal, moved, whole = view.state_dict(), 0, 0.0, 0.0
    for key, tensor in stored.values():
        old, new = tensor.reshape(-1), state[key].reshape(-1)
        equal += bool(torch.equal(old.view(torch.uint8), new.view(torch.uint8)))
        moved += float((new.double() - old.double()).square().sum())
        whole += float(old.double().square().sum())
    return len(stored), equal, math.sqrt(moved / whole)


def _frozen(model: nn.Module) -> int:
    """How many leading layers run as in the base, the adapter switched on: nothing in or before them is wrapped."""
    plain = base_of(model)
    stacks = find_architecture(plain_view(plain)).stacks
    wrapped = [name for name, module in plain.named_modules() if isinstance(module, BaseTunerLayer)]
    if not all(name.startswith(tuple(f"{stack.path}." for stack in stacks)) for name in wrapped):
        return 0
    layers = stacks[0].layers
    adapted = [any(name.startswith(f"{layer.path}.") for name in wrapped) for layer in layers]
    return [*adapted, True].index(True)
