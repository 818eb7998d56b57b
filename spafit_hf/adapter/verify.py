"""Check an adapter folder, which may come from a stranger, before a tensor of it is used.

Nothing in the folder is trusted: configuration and sidecar are bounded and checked field by field, no pattern in them
is ever run as a regular expression, the weights must be safetensors, and each tensor must be one that the
configuration announces, of the shape that the base asks for, and finite. What comes out is plain data that `load.py`
carries out.

The attacks that plain PEFT lets through, and that are refused here: keys that name weights of the base, missing
LoRA B, NaN and infinity, another base, pickles, and configurations that import or transform what they name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import nn

from spafit_hf.adapter.fit import check_fit, check_same_base, head_names
from spafit_hf.adapter.folder import (
    BOTTLENECK_PARTS,
    KEY_PREFIX,
    AdapterError,
    BaseFacts,
    Sidecar,
    TensorName,
    endings,
    parents,
)
from spafit_hf.adapter.untrusted import (
    NARROWING_FIELDS,
    bottlenecks_of,
    read_config,
    read_shapes,
    read_sidecar,
)
from spafit_hf.adapter.verified import VerifiedAdapter
from spafit_hf.architecture.experts import BIAS_ENDING, by_module, expert_wrappers, wrappers
from spafit_hf.names import CONFIG_FILE, MAX_HEADS, SIDECAR_FILE, WEIGHTS_FILE
from spafit_hf.planner import LoraSettings
from spafit_hf.tuner.plain import plain_view

#: The part that holds a module's bias -> the form that a file of such biases has.
FORM_OF_PART = {"bias": "absolute", "lora_B.bias": "lora-bias", "lora_delta": "native"}
#: Forms in which PEFT adds biases after LoRA B.
ADDED_FORMS = ("lora-bias", "mixed")


def verify_adapter(folder: str | os.PathLike[str], base: nn.Module | None = None) -> VerifiedAdapter:
    """Check an adapter folder; with a base, also that it fits there. Reads no more than names, shapes and finiteness.

    Args:
        folder: holds `adapter_config.json`, `adapter_model.safetensors` and perhaps `spafit_config.json`.
        base: the plain model that the adapter is to go on, already or not yet wrapped by other adapters (the model
            itself, not the `PeftModel`). Without it, what needs a base is not checked.

    Raises:
        AdapterError: with the reason, for whatever is missing, superfluous, malformed, not finite, or of another base.
    """
    return verify_and_read(folder, None if base is None else plain_view(base))[0]


def check_written(folder: Path, plain: nn.Module) -> None:
    """Put a folder through the checks of loading, against a view of the very model that it was saved from."""
    try:
        verify_and_read(folder, plain, same_base=True)
    except AdapterError as error:
        raise AdapterError(f"nothing was written, since it could not be read back: {error}") from error


def verify_and_read(
    folder: str | os.PathLike[str], plain: nn.Module | None, *, same_base: bool = False
) -> tuple[VerifiedAdapter, dict[str, torch.Tensor]]:
    """`verify_adapter` and the tensors, on the CPU, by name; with `same_base` its facts are not compared."""
    verified = look_at(folder, plain, same_base=same_base)
    return verified, verified.read_tensors()


def look_at(
    folder: str | os.PathLike[str], plain: nn.Module | None = None, *, same_base: bool = False
) -> VerifiedAdapter:
    """All of `verify_and_read` but the tensors, of which names and shapes alone are read."""
    path = Path(folder)
    if not path.is_dir():
        raise AdapterError(f"{path} is not a folder; give the folder that holds {CONFIG_FILE}.")
    config = read_config(path)
    sidecar = read_sidecar(path)
    trained_on = (
        sidecar.base
        if sidecar is not None
        else BaseFacts(name_or_path=config.get("base_model_name_or_path"), revision=config.get("revision"))
    )
    if plain is not None and not same_base:
        check_same_base(trained_on, plain)
    shapes = read_shapes(path)
    heads = _declared_heads(config, plain, shapes)
    tensors = _classify(shapes, heads)
    verified = _assemble(path, config, sidecar, trained_on, tensors, shapes, heads)
    if plain is not None:
        check_fit(verified, plain)
    return verified


def _declared_heads(config: dict[str, Any], plain: nn.Module | None, keys: Iterable[str]) -> tuple[str, ...]:
    declared = tuple(dict.fromkeys(config.get("modules_to_save") or ()))
    # For PEFT a name is the end of a module's name: "classifier" also saves DistilBERT's pre_classifier.
    outermost = dict.fromkeys(key.removeprefix(KEY_PREFIX).split(".")[0] for key in keys)
    meant = tuple(name for name in outermost if name.endswith(declared) and name not in declared)
    if len(declared) + len(meant) > MAX_HEADS:
        raise AdapterError(f"{WEIGHTS_FILE} holds more than {MAX_HEADS} heads, which no model has.")
    if plain is None:
        return (*declared, *meant)
    known = head_names(plain)
    for name in declared:
        if name not in known:
            raise AdapterError(
                f"{CONFIG_FILE} declares {name!r} as a module to save; for {type(plain).__name__} only the task head "
                f"can be one: {sorted(known)}."
            )
    modules = {name for name, _ in plain.named_modules()}
    return tuple(name for name in (*declared, *(name for name in meant if name in known)) if name in modules)


#: With bias="all" PEFT stores the biases of a head three times over: the base's, and its own once more.
_HEAD_COPY = re.compile(r"(original_module|modules_to_save(\.\w+)?)\.([\w.]+\.)?bias")


def _classify(shapes: dict[str, tuple[int, ...]], heads: tuple[str, ...]) -> dict[str, TensorName]:
    tensors = {}
    whole = set(heads)
    for key in shapes:
        path = key.removeprefix(KEY_PREFIX)
        within = [module for module in parents(path) if module in whole]
        if within:
            if any(_HEAD_COPY.fullmatch(path, len(head) + 1) for head in within):
                continue
            if path != key:
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
    trained_on: BaseFacts,
    tensors: dict[str, TensorName],
    shapes: dict[str, tuple[int, ...]],
    heads: tuple[str, ...],
) -> VerifiedAdapter:
    parts = _by_part(tensors)
    a, b = parts.get("lora_A.weight", {}), parts.get("lora_B.weight", {})
    if set(a) != set(b):
        odd = sorted(set(a) ^ set(b))[0]
        raise AdapterError(f"{WEIGHTS_FILE}: {odd} has only one of LoRA A and LoRA B; the file is incomplete.")
    settings_of = _settings_of(config)
    experts = _experts(config, settings_of, a, b, shapes)
    for wrapper in expert_wrappers(experts):
        a.pop(wrapper, None), b.pop(wrapper, None)
    _check_announced(config, set(a))
    form = _form(config, parts)
    biases = {module for part, modules in parts.items() if _form_of(part) for module in modules}
    lora = {module: settings_of(module, shapes[a[module]], shapes[b[module]]) for module in sorted(a)}
    scaling = {module: settings.scaling for module, settings in lora.items()}
    dora = {module for module, settings in lora.items() if settings.use_dora}
    if odd_ones := sorted(dora ^ set(parts.get("lora_magnitude_vector", {}))):
        raise AdapterError(f"{WEIGHTS_FILE}: the DoRA magnitude of {odd_ones[0]} is missing or unannounced.")
    bottlenecks = bottlenecks_of(config)
    for part in BOTTLENECK_PARTS:
        if odd_ones := sorted(set(bottlenecks) ^ set(parts.get(part, {}))):
            raise AdapterError(f"{WEIGHTS_FILE}: {part} of {odd_ones[0]} is missing or unannounced in {CONFIG_FILE}.")
    if sidecar is not None:
        lora, biases = _as_announced(sidecar, form, lora, biases)
    narrowed = any(config.get(name) for name in NARROWING_FIELDS)
    return VerifiedAdapter(
        folder=path,
        form=form,
        base=trained_on,
        task_type=config.get("task_type"),
        lora=lora,
        bias_modules=tuple(sorted(biases)),
        head=heads,
        labels=sidecar.labels if sidecar is not None else config.get("labels"),
        strategy=sidecar.strategy if sidecar is not None else config.get("strategy"),
        task=sidecar.task if sidecar is not None else {},
        tensors=tensors,
        shapes=shapes,
        bias_scaling=scaling if form in ADDED_FORMS else {},
        targets=frozenset() if sidecar is not None or narrowed else _targets(config),
        bottlenecks=bottlenecks,
        experts=experts,
    )


def _experts(
    config: dict[str, Any],
    settings_of: SettingsOf,
    a: dict[str, str],
    b: dict[str, str],
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, LoraSettings]:
    """The parameters with LoRA, for each of which the file holds the factors of one wrapper; no order is known yet."""
    experts: dict[str, LoraSettings] = {}
    for owner, names in by_module(dict.fromkeys(config.get("target_parameters") or ())).items():
        for wrapper in wrappers(owner, len(names)):
            if wrapper not in a:
                raise AdapterError(
                    f"{CONFIG_FILE} targets parameters of {owner or names[0]}, for which {WEIGHTS_FILE} holds no "
                    "LoRA: it is cut, or parameters are not named in full."
                )
            of_both = shapes[a[wrapper]], shapes[b[wrapper]]
            experts |= {name: settings_of(name, *of_both, several=True) for name in names}
    return experts


def _by_part(tensors: dict[str, TensorName]) -> dict[str, dict[str, str]]:
    """Part of an adapter -> module -> the tensor's name."""
    parts: dict[str, dict[str, str]] = {}
    for key, name in tensors.items():
        if name.module:
            part = "bias" if name.part == "base_layer.bias" else name.part
            if name.module in parts.setdefault(part, {}):
                raise AdapterError(f"{WEIGHTS_FILE} holds two biases of {name.module}.")
            parts[part][name.module] = key
    return parts


def _form(config: dict[str, Any], parts: dict[str, dict[str, str]]) -> str:
    """The form of the biases (see `folder`), which the configuration must have announced."""
    found = sorted({form for part in parts if (form := _form_of(part))})
    if found == ["absolute", "lora-bias"]:
        found = ["mixed"]
    if len(found) > 1:
        raise AdapterError(f"{WEIGHTS_FILE} mixes biases of the forms {found}; one file has one form.")
    native = config["peft_type"] == "SPAFIT"
    if found and (found[0] == "native") != native:
        raise AdapterError(
            f"{WEIGHTS_FILE} holds biases of the form {found[0]}, but {CONFIG_FILE} says {config['peft_type']}, which "
            "has none of that form."
        )
    form = "native" if native else (*found, "absolute")[0]
    if form in ("absolute", "mixed") and found and config.get("bias", "none") == "none":
        raise AdapterError(f"{WEIGHTS_FILE} holds biases, but {CONFIG_FILE} says bias='none'.")
    if bool(config.get("lora_bias")) != (form in ADDED_FORMS):
        raise AdapterError(f"{CONFIG_FILE} says lora_bias={config.get('lora_bias')}, {WEIGHTS_FILE} says otherwise.")
    return form


def _form_of(part: str) -> str | None:
    return "absolute" if part.endswith(BIAS_ENDING) else FORM_OF_PART.get(part)


def _as_announced(
    sidecar: Sidecar, form: str, lora: dict[str, LoraSettings], biases: set[str]
) -> tuple[dict[str, LoraSettings], set[str]]:
    """LoRA and biases as the sidecar announces them, which must be what the file holds."""
    if sidecar.form != form:
        raise AdapterError(f"{SIDECAR_FILE} says form {sidecar.form!r}, {WEIGHTS_FILE} holds {form!r}.")
    announced, modules = set(sidecar.bias_modules), set(sidecar.lora_modules)
    if form in ADDED_FORMS:
        # PEFT asks for LoRA and a bias of its B wherever one of the two is; what the adapter lacks is zero there.
        _check_equal("", announced | modules, biases)
        biases = announced
        lora = {module: settings for module, settings in lora.items() if module in modules}
    _check_equal("LoRA of ", modules, set(lora))
    _check_equal("the bias of ", announced, biases)
    return lora, biases


def _check_equal(what: str, announced: set[str], found: set[str]) -> None:
    if odd := sorted(announced ^ found):
        raise AdapterError(f"{what}{odd[0]} is missing or unannounced: {SIDECAR_FILE} and {WEIGHTS_FILE} differ.")


def _check_announced(config: dict[str, Any], modules: set[str]) -> None:
    """Every module that the configuration targets must have LoRA in the file, and no other."""
    targets, met = _targets(config), set[str]()
    for module in sorted(modules):
        meant = targets.intersection(endings(module))
        if not meant:
            raise AdapterError(f"{WEIGHTS_FILE} holds LoRA for {module}, which {CONFIG_FILE} does not target.")
        met |= meant
    if missing := sorted(targets - met):
        raise AdapterError(f"{CONFIG_FILE} targets {missing[0]}, for which {WEIGHTS_FILE} holds no LoRA: it is cut.")


def _targets(config: dict[str, Any]) -> frozenset[str]:
    targets = config.get("target_modules") or ()
    return frozenset(() if targets == DUMMY_TARGET_MODULES else targets)


SettingsOf = Callable[..., LoraSettings]


def lora_settings(config: dict[str, Any]) -> Callable[[str], LoraSettings]:
    """From the name of a module or parameter to the LoRA settings that a configuration gives it."""

    def own(field: str, default: Any) -> Callable[[str], Any]:
        items = list((config.get(field) or {}).items())
        places = {key: place for place, (key, _) in enumerate(items)}

        def of(module: str) -> Any:
            found = [places[name] for name in endings(module) if name in places]
            return items[min(found)][1] if found else default  # as for PEFT, the first that means it

        return of

    rank, alpha = own("rank_pattern", config.get("r", 8)), own("alpha_pattern", config.get("lora_alpha", 8))
    others = own("module_settings", {})

    def settings(module: str) -> LoraSettings:
        more = others(module)
        return LoraSettings(
            r=rank(module),
            lora_alpha=alpha(module),
            lora_dropout=more.get("lora_dropout", config.get("lora_dropout") or 0.0),
            use_rslora=bool(more.get("use_rslora", config.get("use_rslora"))),
            use_dora=bool(more.get("use_dora", config.get("use_dora"))),
        )

    return settings


def _settings_of(config: dict[str, Any]) -> SettingsOf:
    """From a module and the shapes of its LoRA A and B to its settings; `several` experts have a rank each."""
    announced = lora_settings(config)

    def settings(module: str, a: tuple[int, ...], b: tuple[int, ...], several: bool = False) -> LoraSettings:
        found = announced(module)
        r = found.r
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (a[0] % r if several else a[0] != r):
            raise AdapterError(f"{module}: LoRA A is {list(a)}, LoRA B is {list(b)}, but {CONFIG_FILE} says rank {r}.")
        return found

    return settings
