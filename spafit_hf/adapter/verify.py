"""Check an adapter folder, which may come from a stranger, before a tensor of it is used.

Nothing in the folder is trusted: configuration and sidecar are bounded and checked field by field, no pattern in them
is ever run as a regular expression, the weights must be safetensors, and each tensor must be one that the
configuration announces, of the shape that the base asks for, and finite. What comes out is plain data that `load.py`
carries out.

The attacks that plain PEFT lets through, and that are refused here: keys that name weights of the base, missing
LoRA B, NaN and infinity, another base, pickles, and configurations that import or transform what they name.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError, safe_open
from torch import nn

from spafit_hf.adapter.folder import (
    CONFIG_FILE,
    KEY_PREFIX,
    SIDECAR_FILE,
    WEIGHTS_FILE,
    AdapterError,
    BaseFacts,
    Sidecar,
    TensorName,
    base_facts,
    read_json,
)
from spafit_hf.architecture import find_architecture
from spafit_hf.planner import LoraSettings
from spafit_hf.strategy import Strategy
from spafit_hf.tuner import SpafitConfig
from spafit_hf.tuner.config import MODULE_SETTINGS
from spafit_hf.tuner.layer import is_dense, is_norm

MAX_CONFIG_BYTES = 4 * 2**20
MAX_WEIGHTS_BYTES = 2 * 2**30
MAX_HEADER_BYTES = 16 * 2**20

#: Names of heads that PEFT itself stores with an adapter for classification.
PEFT_HEADS = ("classifier", "score")

#: Fields of a LoRA configuration that this reader carries out. Every other field must hold its default.
READ_FIELDS = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
        # fields of SpafitConfig
        "bias_modules",
        "labels",
        "module_settings",
        "strategy",
    }
)
#: Names a class to import for a model that PEFT does not know; read by PEFT alone, never by this package.
PASSIVE_FIELDS = frozenset({"auto_mapping"})


@dataclass(frozen=True)
class VerifiedAdapter:
    """A folder that passed: what it holds, and where its tensors lie."""

    folder: Path
    form: str
    base: BaseFacts
    task_type: str | None
    lora: dict[str, LoraSettings]
    bias_modules: tuple[str, ...]
    head: tuple[str, ...]
    labels: dict[str, Any] | None
    strategy: dict[str, Any] | None
    task: dict[str, Any]
    #: tensor name -> (module, part); parts of heads have the module "" and their whole path as part
    tensors: dict[str, TensorName] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: lora-bias form: module -> the factor that plain PEFT applies to the bias of LoRA B
    bias_scaling: dict[str, float] = field(default_factory=dict)

    def read_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, on the CPU, by name.

        Raises:
            AdapterError: if one is not finite, or the file has changed since it was checked.
        """
        with _open(self.folder / WEIGHTS_FILE) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != self.shapes:
            raise AdapterError(f"{WEIGHTS_FILE} changed while it was being read; try again.")
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"{key} holds NaN or infinity; the adapter is broken and cannot be used.")
        return tensors


def verify_adapter(folder: str | os.PathLike[str], base: nn.Module | None = None) -> VerifiedAdapter:
    """Check an adapter folder; with a base, also that it fits there. Reads no more than names, shapes and finiteness.

    Args:
        folder: holds `adapter_config.json`, `adapter_model.safetensors` and perhaps `spafit_config.json`.
        base: the plain model that the adapter is to go on, already or not yet wrapped by other adapters (the model
            itself, not the `PeftModel`). Without it, what needs a base is not checked.

    Returns:
        What the folder holds.

    Raises:
        AdapterError: with the reason, for whatever is missing, superfluous, malformed, not finite, or of another base.
    """
    path = Path(folder)
    if not path.is_dir():
        raise AdapterError(f"{path} is not a folder; give the folder that holds {CONFIG_FILE}.")
    config = _read_config(path)
    sidecar = _read_sidecar(path)
    with _open(path / WEIGHTS_FILE) as file:
        shapes = {}
        for key in file.keys():  # noqa: SIM118 (not a dict)
            piece = file.get_slice(key)
            if piece.get_dtype() not in ("F32", "F16", "BF16"):
                raise AdapterError(f"{key} has dtype {piece.get_dtype()}; allowed are F32, F16 and BF16.")
            shapes[key] = tuple(piece.get_shape())

    head_names = _head_names(config, base)
    tensors = _classify(shapes, head_names)
    verified = _assemble(path, config, sidecar, tensors, shapes, head_names)
    if base is not None:
        _check_base(verified, base, sidecar)
        _check_shapes(verified, base)
    verified.read_tensors()
    return verified


# ---- the three files ----


def _read_config(path: Path) -> dict[str, Any]:
    data = read_json(path / CONFIG_FILE, MAX_CONFIG_BYTES)
    if not isinstance(data, dict):
        raise AdapterError(f"{CONFIG_FILE} holds a {type(data).__name__}; expected is an object.")
    if data.get("peft_type") not in ("LORA", "SPAFIT"):
        raise AdapterError(f"{CONFIG_FILE}: peft_type is {data.get('peft_type')!r}; allowed are 'LORA' and 'SPAFIT'.")
    known = SpafitConfig if data["peft_type"] == "SPAFIT" else LoraConfig
    default = known(peft_type=data["peft_type"]).to_dict()
    for name, value in data.items():
        if name in READ_FIELDS or name in PASSIVE_FIELDS:
            continue
        if name not in default:
            raise AdapterError(f"{CONFIG_FILE} has the unknown field {name!r}; it may need a newer version of peft.")
        if value != default[name] and value not in (None, False, [], {}):
            raise AdapterError(
                f"{CONFIG_FILE} sets {name} to {value!r:.80}; this package reads adapters of plain LoRA, DoRA and bias"
                " deltas. Load it with peft if you trust where it comes from."
            )
    _check_types(data)
    return data


def _check_types(config: dict[str, Any]) -> None:
    def names(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(name, str) for name in value)

    def flag(value: Any) -> bool:
        return value is None or isinstance(value, bool)

    def number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    def rank(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**16

    def pattern(value: Any, allowed: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) and allowed(item) for key, item in value.items())

    good = {
        "r": rank(config.get("r", 8)),
        "lora_alpha": number(config.get("lora_alpha", 8)),
        "lora_dropout": number(config.get("lora_dropout") or 0.0) and 0 <= (config.get("lora_dropout") or 0.0) < 1,
        "bias": config.get("bias", "none") in ("none", "all", "lora_only"),
        "rank_pattern": pattern(config.get("rank_pattern") or {}, rank),
        "alpha_pattern": pattern(config.get("alpha_pattern") or {}, number),
        "target_modules": config.get("target_modules") in (None, DUMMY_TARGET_MODULES)
        or names(config.get("target_modules")),
        "modules_to_save": config.get("modules_to_save") is None or names(config["modules_to_save"]),
        "bias_modules": config.get("bias_modules") is None or names(config["bias_modules"]),
        "module_settings": pattern(
            config.get("module_settings") or {},
            lambda own: isinstance(own, dict) and set(own) <= set(MODULE_SETTINGS),
        ),
        "task_type": config.get("task_type") is None or isinstance(config["task_type"], str),
        "base_model_name_or_path": config.get("base_model_name_or_path") is None
        or isinstance(config["base_model_name_or_path"], str),
        "revision": config.get("revision") is None or isinstance(config["revision"], str),
        **{name: flag(config.get(name)) for name in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out")},
    }
    for name, fine in good.items():
        if not fine:
            hint = " (a regular expression is not run from a file)" if isinstance(config.get(name), str) else ""
            raise AdapterError(f"{CONFIG_FILE}: {name} is {config.get(name)!r:.80}, which is not allowed{hint}.")


def _read_sidecar(path: Path) -> Sidecar | None:
    if not (path / SIDECAR_FILE).exists():
        return None
    sidecar = Sidecar.from_dict(read_json(path / SIDECAR_FILE, MAX_CONFIG_BYTES))
    if sidecar.strategy is not None:
        try:
            Strategy.from_dict(sidecar.strategy)
        except ValueError as error:
            raise AdapterError(f"{SIDECAR_FILE}: {error}") from error
    return sidecar


def _open(path: Path) -> Any:
    """`safe_open` with the file's size and header bounded first.

    Raises:
        AdapterError: if the file is missing, too large, truncated, or no safetensors file.
    """
    if not path.is_file():
        others = sorted(
            entry.name for entry in path.parent.iterdir() if entry.suffix in (".bin", ".pt", ".pth", ".pkl")
        )
        found = f" {others[0]} is a pickle, which can run code and is never read." if others else ""
        raise AdapterError(f"{path.parent} has no {path.name}.{found} Save the adapter as safetensors.")
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise AdapterError(
            f"{path.name} has {size:,} bytes; adapters of more than {MAX_WEIGHTS_BYTES:,} are not read."
        )
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or header > min(size - 8, MAX_HEADER_BYTES):
        raise AdapterError(f"{path.name} is truncated or no safetensors file: its header claims {header:,} bytes.")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise AdapterError(f"{path.name} is not a valid safetensors file: {error}.") from error


# ---- what the tensors are ----


def _head_names(config: dict[str, Any], base: nn.Module | None) -> tuple[str, ...]:
    declared = tuple(dict.fromkeys(config.get("modules_to_save") or ()))
    if base is None:
        return declared
    known = {*PEFT_HEADS, *_architecture_head(base)}
    for name in declared:
        if name not in known:
            raise AdapterError(
                f"{CONFIG_FILE} declares {name!r} as a module to save; for {type(base).__name__} only the task head "
                f"can be one: {sorted(known)}."
            )
    return tuple(name for name in declared if _has_module(base, name))


def _architecture_head(base: nn.Module) -> tuple[str, ...]:
    try:
        return find_architecture(base).head
    except ValueError:  # an architecture nobody described: PEFT's own names of heads remain
        return ()


def _has_module(base: nn.Module, name: str) -> bool:
    try:
        base.get_submodule(name)
    except AttributeError:
        return False
    return True


def _classify(shapes: dict[str, tuple[int, ...]], heads: tuple[str, ...]) -> dict[str, TensorName]:
    tensors = {}
    for key in shapes:
        path = key.removeprefix(KEY_PREFIX)
        if key.startswith(KEY_PREFIX) and any(path.startswith(f"{head}.") for head in heads):
            tensors[key] = TensorName("", path)
            continue
        name = TensorName.parse(key)
        if name is None:
            raise AdapterError(
                f"{WEIGHTS_FILE} holds {key!r}, which is no LoRA, bias or declared head tensor; it would overwrite a "
                "weight of the base."
            )
        tensors[key] = name
    return tensors


def _assemble(
    path: Path,
    config: dict[str, Any],
    sidecar: Sidecar | None,
    tensors: dict[str, TensorName],
    shapes: dict[str, tuple[int, ...]],
    heads: tuple[str, ...],
) -> VerifiedAdapter:
    by_part: dict[str, dict[str, str]] = {}
    for key, name in tensors.items():
        if name.module:
            part = "bias" if name.part == "base_layer.bias" else name.part
            if name.module in by_part.setdefault(part, {}):
                raise AdapterError(f"{WEIGHTS_FILE} holds two biases of {name.module}.")
            by_part[part][name.module] = key
    a, b = by_part.get("lora_A.weight", {}), by_part.get("lora_B.weight", {})
    if set(a) != set(b):
        odd = sorted(set(a) ^ set(b))[0]
        raise AdapterError(f"{WEIGHTS_FILE}: {odd} has only one of LoRA A and LoRA B; the file is incomplete.")
    _check_announced(config, set(a))

    forms = {"bias": "absolute", "lora_B.bias": "lora-bias", "lora_delta": "native"}
    found = [form for part, form in forms.items() if by_part.get(part)]
    if len(found) > 1:
        raise AdapterError(f"{WEIGHTS_FILE} mixes biases of the forms {found}; one file has one form.")
    form = "native" if config["peft_type"] == "SPAFIT" else (found[0] if found else "absolute")
    if found and found[0] != form:
        raise AdapterError(f"{WEIGHTS_FILE} holds biases of the form {found[0]}, {CONFIG_FILE} says {form}.")
    if form == "absolute" and found and config.get("bias", "none") == "none":
        raise AdapterError(f"{WEIGHTS_FILE} holds biases, but {CONFIG_FILE} says bias='none'.")
    if bool(config.get("lora_bias")) != (form == "lora-bias"):
        raise AdapterError(f"{CONFIG_FILE} says lora_bias={config.get('lora_bias')}, {WEIGHTS_FILE} says otherwise.")
    biases = {module for part in forms for module in by_part.get(part, {})}

    lora = {module: _lora_settings(config, module, shapes[a[module]], shapes[b[module]]) for module in sorted(a)}
    scaling = {module: _scaling(settings) for module, settings in lora.items()}
    magnitudes = set(by_part.get("lora_magnitude_vector", {}))
    dora = {module for module, part in lora.items() if part.use_dora}
    if magnitudes != dora:
        odd = sorted(magnitudes ^ dora)[0]
        raise AdapterError(f"{WEIGHTS_FILE}: the DoRA magnitude of {odd} is missing or unannounced.")
    if sidecar is not None:
        if sidecar.form != form:
            raise AdapterError(f"{SIDECAR_FILE} says form {sidecar.form!r}, {WEIGHTS_FILE} holds {form!r}.")
        announced = set(sidecar.bias_modules)
        if form == "lora-bias":
            # PEFT asks for LoRA and a bias of its B wherever one of the two is; what the adapter lacks is zero there.
            if announced | set(sidecar.lora_modules) != biases:
                odd = sorted((announced | set(sidecar.lora_modules)) ^ biases)[0]
                raise AdapterError(f"{odd} is missing or unannounced: {SIDECAR_FILE} and {WEIGHTS_FILE} differ.")
            biases = announced
            lora = {module: settings for module, settings in lora.items() if module in sidecar.lora_modules}
        if set(sidecar.lora_modules) != set(lora):
            odd = sorted(set(sidecar.lora_modules) ^ set(lora))[0]
            raise AdapterError(f"LoRA of {odd} is missing or unannounced: {SIDECAR_FILE} and {WEIGHTS_FILE} differ.")
        if announced != biases:
            odd = sorted(announced ^ biases)[0]
            raise AdapterError(
                f"the bias of {odd} is missing or unannounced: {SIDECAR_FILE} and {WEIGHTS_FILE} differ."
            )
    labels = sidecar.labels if sidecar is not None else config.get("labels")
    return VerifiedAdapter(
        folder=path,
        form=form,
        base=sidecar.base if sidecar is not None else _base_of(config),
        task_type=config.get("task_type"),
        lora=lora,
        bias_modules=tuple(sorted(biases)),
        head=heads,
        labels=labels,
        strategy=sidecar.strategy if sidecar is not None else None,
        task=sidecar.task if sidecar is not None else {},
        tensors=tensors,
        shapes=shapes,
        bias_scaling=scaling if form == "lora-bias" else {},
    )


def _scaling(settings: LoraSettings) -> float:
    return settings.lora_alpha / (math.sqrt(settings.r) if settings.use_rslora else settings.r)


def _base_of(config: dict[str, Any]) -> BaseFacts:
    return BaseFacts(name_or_path=config.get("base_model_name_or_path"), revision=config.get("revision"))


def _check_announced(config: dict[str, Any], modules: set[str]) -> None:
    """Every module that the configuration targets must have LoRA in the file, and no other."""
    targets = config.get("target_modules") or []
    names = [] if targets == DUMMY_TARGET_MODULES else targets

    def announces(target: str, module: str) -> bool:
        return module == target or module.endswith(f".{target}")

    for module in sorted(modules):
        if not any(announces(target, module) for target in names):
            raise AdapterError(f"{WEIGHTS_FILE} holds LoRA for {module}, which {CONFIG_FILE} does not target.")
    for target in names:
        if not any(announces(target, module) for module in modules):
            raise AdapterError(
                f"{CONFIG_FILE} targets {target}, for which {WEIGHTS_FILE} holds no LoRA: it is incomplete."
            )


def _lora_settings(config: dict[str, Any], module: str, a: tuple[int, ...], b: tuple[int, ...]) -> LoraSettings:
    def own(pattern: dict[str, Any], default: Any) -> Any:
        # PEFT would run the keys as regular expressions; here they are names, and anything else is refused.
        for key, value in pattern.items():
            if not re.fullmatch(r"[\w.]+", key):
                raise AdapterError(f"{CONFIG_FILE}: {key!r} in a pattern is no module name.")
            if module == key or module.endswith(f".{key}"):
                return value
        return default

    r = own(config.get("rank_pattern") or {}, config.get("r", 8))
    if len(a) != 2 or len(b) != 2 or a[0] != r or b[1] != r:
        raise AdapterError(f"{module}: LoRA A is {list(a)} and LoRA B is {list(b)}, but {CONFIG_FILE} says rank {r}.")
    settings = own(config.get("module_settings") or {}, {})
    return LoraSettings(
        r=r,
        lora_alpha=own(config.get("alpha_pattern") or {}, config.get("lora_alpha", 8)),
        lora_dropout=settings.get("lora_dropout", config.get("lora_dropout") or 0.0),
        use_rslora=bool(settings.get("use_rslora", config.get("use_rslora"))),
        use_dora=bool(settings.get("use_dora", config.get("use_dora"))),
    )


# ---- whether it fits a base ----


def _check_base(adapter: VerifiedAdapter, base: nn.Module, sidecar: Sidecar | None) -> None:
    loaded = base_facts(base)
    difference = adapter.base.difference(loaded)
    if difference:
        raise AdapterError(f"the adapter does not belong to this base ({loaded.name_or_path}): {difference}.")
    names = adapter.base.name_or_path, loaded.name_or_path
    if sidecar is None and all(_is_hub_id(name) for name in names) and names[0] != names[1]:
        raise AdapterError(
            f"the adapter was trained on {names[0]}, the loaded base is {names[1]}. Load the adapter's own base."
        )


def _is_hub_id(name: str | None) -> bool:
    return name is not None and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not os.path.exists(name)


def _check_shapes(adapter: VerifiedAdapter, base: nn.Module) -> None:
    modules = dict(base.named_modules())

    def plain(name: str) -> nn.Module:
        if name not in modules:
            raise AdapterError(f"the adapter has tensors for {name}, which {type(base).__name__} does not have.")
        module = modules[name]
        return module.get_base_layer() if hasattr(module, "get_base_layer") else module

    for key, name in adapter.tensors.items():
        if not name.module:
            continue
        module, shape = plain(name.module), adapter.shapes[key]
        expected = _expected_shape(module, name.part, shape)
        if shape != expected:
            raise AdapterError(
                f"{key} has shape {list(shape)}; {type(base).__name__} asks for {list(expected)}. "
                "The adapter was trained on a base of another size."
            )
    for head in adapter.head:
        _check_head(adapter, base, head)


def _expected_shape(module: nn.Module, part: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not is_dense(module) and not (is_norm(module) and part in ("bias", "lora_delta")):
        raise AdapterError(
            f"the adapter has {part} for a {type(module).__name__}; allowed are dense modules and norms."
        )
    weight = module.get_parameter("weight")
    if is_norm(module):
        return tuple(weight.shape)
    transposed = not isinstance(module, nn.Linear)  # Conv1D stores (in, out)
    inputs, outputs = (weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0])
    if isinstance(module, nn.Linear):  # quantized weights are packed; the module knows its true size
        inputs, outputs = module.in_features, module.out_features
    if part == "lora_A.weight":
        return (shape[0], inputs)
    if part == "lora_B.weight":
        return (outputs, shape[1])
    if part in ("bias", "base_layer.bias") and module.bias is None:
        raise AdapterError("the adapter has an absolute bias for a module of the base that has none.")
    return (outputs,)


def _check_head(adapter: VerifiedAdapter, base: nn.Module, head: str) -> None:
    module = base.get_submodule(head)
    original = module.original_module if hasattr(module, "original_module") else module
    expected = {f"{head}.{name}": tuple(parameter.shape) for name, parameter in original.named_parameters()}
    found = {
        name.part: adapter.shapes[key]
        for key, name in adapter.tensors.items()
        if not name.module and name.part.startswith(f"{head}.")
    }
    if set(found) != set(expected):
        odd = sorted(set(found) ^ set(expected))[0]
        raise AdapterError(f"the head {head!r} does not match {type(base).__name__}: {odd} is missing or unknown.")
    for name, shape in found.items():
        if shape == expected[name]:
            continue
        # The last layer may have another number of outputs: that is the adapter's own number of labels.
        outputs = adapter.labels["num_labels"] if adapter.labels else shape[0]
        if len(shape) != len(expected[name]) or shape[1:] != expected[name][1:] or shape[0] != outputs:
            raise AdapterError(
                f"{name} of the head has shape {list(shape)}; the base's head has {list(expected[name])}."
            )
