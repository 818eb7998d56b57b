"""Write an adapter folder, in the form that plain PEFT reads wherever the model allows it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import get_pattern_key
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.adapter.folder import AdapterError, Sidecar, TensorName, facts_of_plain
from spafit_hf.adapter.verify import check_written
from spafit_hf.architecture import split_delta
from spafit_hf.architecture.experts import by_module, expert_wrappers, wrappers
from spafit_hf.names import CONFIG_FILE, SIDECAR_FILE, WEIGHTS_FILE, __version__
from spafit_hf.strategy import Strategy
from spafit_hf.tuner import DeltaLayer, SpafitConfig, SpafitPeftType, saving
from spafit_hf.tuner.config import rewrites_base
from spafit_hf.tuner.entrance import embeddings_were_resized
from spafit_hf.tuner.layer import Experts, Norm
from spafit_hf.tuner.plain import plain_view
from spafit_hf.words import first_line, last_line


def save_adapter(
    model: PeftModel,
    folder: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    form: str = "auto",
    task: dict[str, Any] | None = None,
) -> str:
    """Write one adapter of a model as a folder; the form written, as named in `spafit_hf.adapter.folder`.

    The files appear together or not at all: they are written beside the folder first and then moved into it.

    Args:
        model: a PEFT model whose adapter is of this package's method. Nothing may be merged.
        folder: created if it is not there. Other files in it are left alone.
        adapter_name: which adapter.
        form: "peft" for one that plain PEFT reads with equal logits, "native" for the deltas as they are, "auto" for
            the first where the model allows it and the second where not.
        task: facts for the sidecar, JSON types only; for GLUE {"name": "mrpc", ...}.

    Raises:
        AdapterError: if an adapter is merged, the name is unknown, `form="peft"` cannot hold this adapter, a tensor is
            on the meta device, or what was written would be refused by `load_adapter`; then the folder is as it was.
    """
    config = _config_of(model, adapter_name)
    layers = _delta_layers(model, adapter_name)
    base = model.get_base_model()
    plain = plain_view(base)
    obstacle = None if form == "native" else portable_obstacle(config, layers, base)
    if form == "auto":
        form = "native" if obstacle else "peft"
    if form not in ("peft", "native"):
        raise AdapterError(f"form is {form!r}; allowed are 'auto', 'peft' and 'native'.")
    if embeddings_were_resized(base):
        raise AdapterError(
            "the embeddings were resized, and their new rows are in no checkpoint. Save the resized base with its "
            "tokenizer, load it from there, and put the adapter on that."
        )
    tensors = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    _check_all_there(tensors, model, adapter_name)
    if isinstance(config.init_lora_weights, str):  # how LoRA started is of no use to a reader
        config = dataclasses.replace(config, init_lora_weights=True, eva_config=None)
    if any("init_lora_weights" in own for own in config.module_settings.values()):
        config = dataclasses.replace(config, module_settings=_without_start(config.module_settings))
    lora_modules = _lora_modules(config, tensors)
    if form == "native":
        written, peft_config = "native", config
    elif obstacle:
        raise AdapterError(f"plain PEFT cannot read this adapter: {obstacle}. Save it with form='native'.")
    else:
        written, peft_config, tensors = _portable(config, layers, tensors)
    if empty := sorted(key for key, tensor in tensors.items() if tensor.is_meta):
        raise AdapterError(
            f"{empty[0]} (of {len(empty)} such tensors) is on the meta device, without values to save; load the model "
            "with its weights (from_pretrained), or where the base alone is kept elsewhere, take form='native'."
        )
    strategy = config.to_dict()["strategy"]
    sidecar = Sidecar(
        form=written,
        strategy=None if strategy is None else Strategy.coerce(strategy).to_dict(),
        lora_modules=tuple(lora_modules),
        bias_modules=tuple(sorted(layers)),
        labels=config.labels,
        base=facts_of_plain(plain),
        task=task or {},
        spafit_hf_version=__version__,
    )
    _write(Path(folder), _config_json(peft_config, model, sidecar), tensors, sidecar, plain)
    return written


def save_pretrained(
    model: PeftModel,
    save_directory: str | os.PathLike[str],
    safe_serialization: bool = True,
    selected_adapters: list[str] | None = None,
    is_main_process: bool = True,
    **others: Any,
) -> None:
    """`PeftModel.save_pretrained` of a wrapped model: each adapter in the form that plain PEFT reads.

    Whatever this package's form cannot be written from is left to PEFT's own: shards of tensors, pickles, an adapter
    of another method, or one that names LoRA's modules alone and so is nothing but LoRA.

    Args: as in PEFT; a `state_dict` is of no use, since the model holds its tensors whole.
    """
    names = selected_adapters or list(model.peft_config)
    configs = [model.peft_config.get(name) for name in names]
    ours = all(isinstance(each, SpafitConfig) and each.bias_modules is not None for each in configs)
    whole = all(type(each.data) is torch.Tensor and each.numel() for each in model.parameters())
    if not (ours and whole and safe_serialization) or others.get("path_initial_model_for_weight_conversion"):
        arguments = {"selected_adapters": selected_adapters, "is_main_process": is_main_process, **others}
        PeftModel.save_pretrained(model, save_directory, safe_serialization, **arguments)
    elif is_main_process:
        for name in names:
            save_adapter(model, Path(save_directory) / ("" if name == "default" else name), name)
        model.create_or_update_model_card(os.fspath(save_directory))


saving.save_pretrained = save_pretrained


def portable_obstacle(
    config: SpafitConfig, layers: dict[str, DeltaLayer], base: nn.Module | None = None
) -> str | None:
    """Why plain PEFT could not read this adapter with equal logits, as a clause; None if it can. `layers`: those with
    a delta."""
    if any("use_dora" in own and own["use_dora"] != config.use_dora for own in config.module_settings.values()):
        return "some strata use DoRA and others do not, which plain PEFT cannot mix"
    if config.bottlenecks:
        return "it has bottleneck adapters"
    if config.trainable_token_indices:
        return "it has trainable_token_indices beside LoRA, deltas and head"
    misread = _misread(config, layers, base) if base is not None else None
    without_bias = [name for name, layer in layers.items() if layer.lacks_bias]
    if not misread and without_bias and config.use_dora:
        return f"it has DoRA and deltas on modules without a bias (such as {without_bias[0]})"
    return misread


def _misread(config: SpafitConfig, layers: dict[str, DeltaLayer], base: nn.Module) -> str | None:
    """What plain PEFT, on reading, makes of a name that it takes for one of an earlier release's."""
    targets = {*layers, *(config.target_modules if isinstance(config.target_modules, (set, list)) else ())}
    if isinstance(base, PreTrainedModel) and isinstance(base._tied_weights_keys, dict):
        try:
            base.get_input_embeddings()
        except NotImplementedError:
            return f"PEFT asks {type(base).__name__} for its input embeddings, which it does not give"
    experts = by_module(config.target_parameters or ())
    # Name, parameters with LoRA in it, and where their LoRA is.
    places: list[tuple[str, list[str], list[str]]] = [(name, [], [name]) for name in sorted(targets)]
    places += [(owner, names, list(wrappers(owner, len(names)))) for owner, names in experts.items()]
    for name, parameters, wrapped in places:
        alone = LoraConfig(target_modules=[] if parameters else [name], target_parameters=parameters)
        keys = {str(TensorName(each, f"lora_{part}.weight")): torch.zeros(8, 8) for each in wrapped for part in "AB"}
        try:
            convert_peft_config_for_transformers(alone, base, None)
            found = convert_peft_adapter_state_dict_for_transformers(base, alone, dict(keys))
        except (ValueError, RuntimeError, LookupError) as error:
            return f"PEFT takes {name} for a module of an earlier release of transformers ({first_line(error)})"
        if set(alone.target_parameters or ()) != set(parameters) or found.keys() != keys.keys():
            return f"PEFT takes {name} for a module of an earlier release of transformers, and renames it"
    return None


def _without_start(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    kept = {
        module: {key: value for key, value in own.items() if key != "init_lora_weights"}
        for module, own in settings.items()
    }
    return {module: own for module, own in kept.items() if own}


def _config_of(model: PeftModel, adapter_name: str) -> SpafitConfig:
    if not isinstance(model, PeftModel):
        raise AdapterError(
            f"save_adapter takes a PEFT model, got {type(model).__name__}; wrap it with get_spafit_model first, "
            "or save a fully fine-tuned model with model.save_pretrained(folder)."
        )
    if adapter_name not in model.peft_config:
        raise AdapterError(f"no adapter {adapter_name!r} in the model; it has {sorted(model.peft_config)}.")
    config = model.peft_config[adapter_name]
    if not isinstance(config, SpafitConfig):
        raise AdapterError(
            f"adapter {adapter_name!r} is of PEFT type {config.peft_type}; save it with model.save_pretrained(folder)."
        )
    if rewrites_base(config):
        raise AdapterError(
            f"init_lora_weights={config.init_lora_weights!r} has changed the base's weights; save it as PEFT does: "
            "PeftModel.save_pretrained(model, folder, path_initial_model_for_weight_conversion=...)."
        )
    merged = sorted({name for _, layer in _lora_layers(model) for name in layer.merged_adapters})
    if merged:
        raise AdapterError(f"{merged} are merged into the base; call model.unmerge_adapter() before saving.")
    return config


def _lora_layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    return [(name, each) for name, each in model.get_base_model().named_modules() if isinstance(each, LoraLayer)]


def _delta_layers(model: PeftModel, adapter_name: str) -> dict[str, DeltaLayer]:
    layers = [(name, layer) for name, layer in _lora_layers(model) if isinstance(layer, DeltaLayer)]
    return {name: layer for name, layer in layers if adapter_name in layer.lora_delta}


def _check_all_there(tensors: dict[str, torch.Tensor], model: PeftModel, adapter_name: str) -> None:
    # PEFT leaves out every tensor with the name of another adapter in its own: of one called "query", for instance.
    parts = {
        str(TensorName(name, part))
        for name, layer in _lora_layers(model)
        for part, held in (("lora_delta", "lora_delta"), ("lora_A.weight", "lora_A"), ("lora_up.weight", "lora_up"))
        if adapter_name in getattr(layer, held, ())
    }
    missing = sorted(parts - set(tensors))
    if missing:
        others = sorted(set(model.peft_config) - {adapter_name})
        raise AdapterError(
            f"PEFT leaves out {len(missing)} tensors ({missing[0]}), since another adapter ({others}) is named like a "
            "module. Delete that adapter, or give it another name."
        )


def _portable(
    config: SpafitConfig, layers: dict[str, DeltaLayer], tensors: dict[str, torch.Tensor]
) -> tuple[str, LoraConfig, dict[str, torch.Tensor]]:
    """The adapter as a LORA one: its form, PEFT's configuration of it, its tensors."""
    names = {key: TensorName.parse(key) for key in tensors}
    lora_modules = _lora_modules(config, tensors)
    experts = sorted(config.target_parameters or ())
    deltas = {name.module: tensors[key] for key, name in names.items() if name and name.part == "lora_delta"}
    rest = {key: tensor for key, tensor in tensors.items() if not key.endswith(".lora_delta")}
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(LoraConfig)
        if field.init and field.name not in ("peft_type", "runtime_config")
    }
    fields["target_modules"] = lora_modules or ([] if experts else DUMMY_TARGET_MODULES)
    fields["target_parameters"] = experts or None
    fields["layers_to_transform"] = fields["layers_pattern"] = None  # the modules are named one by one now
    fields["rank_pattern"] = _pattern(config.rank_pattern, config.r, [*lora_modules, *experts])
    fields["alpha_pattern"] = _alphas(config, fields["rank_pattern"], [*lora_modules, *experts])
    if not deltas:
        return "absolute", LoraConfig(**fields), rest
    added = {module: delta for module, delta in deltas.items() if layers[module].lacks_bias}
    if added and not any(isinstance(layer, (Norm, Experts)) for layer in layers.values()):
        return "lora-bias", *_as_lora_bias(fields, layers, deltas, rest)
    for module in deltas.keys() - added.keys():
        base = layers[module].get_base_layer()
        for key, part in split_delta(base, deltas[module]).items():
            bias = base.get_parameter(key).detach()
            # fp32, whatever the base's dtype: a delta of 1e-3 is lost in a bfloat16 sum
            inner = f"base_layer.{key}" if module in lora_modules else key
            rest[str(TensorName(module, inner))] = bias.float() + part.to(bias.device)
    fields["bias"] = "all"
    if added:
        return "mixed", *_as_lora_bias(fields, layers, added, rest)
    return "absolute", LoraConfig(**fields), rest


def _as_lora_bias(
    fields: dict[str, Any],
    layers: dict[str, DeltaLayer],
    deltas: dict[str, torch.Tensor],
    tensors: dict[str, torch.Tensor],
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Deltas as the bias of LoRA B. PEFT wants LoRA wherever one is: rank 1 and zero where the adapter has none."""
    lora_modules = [] if fields["target_modules"] == DUMMY_TARGET_MODULES else list(fields["target_modules"])
    rank, alpha = dict(fields["rank_pattern"]), dict(fields["alpha_pattern"])
    for module in sorted(set(deltas) - set(lora_modules)):
        layer = layers[module]
        rank[module], alpha[module] = 1, 1.0
        tensors[str(TensorName(module, "lora_A.weight"))] = torch.zeros(1, layer.in_features)
        tensors[str(TensorName(module, "lora_B.weight"))] = torch.zeros(layer.out_features, 1)
    for module in sorted({*lora_modules, *deltas}):
        weight = tensors[str(TensorName(module, "lora_B.weight"))]
        delta = deltas.get(module, torch.zeros(weight.shape[0]))
        r, a = rank.get(module, fields["r"]), alpha.get(module, fields["lora_alpha"])
        scaling = a / math.sqrt(r) if fields["use_rslora"] else a / r
        tensors[str(TensorName(module, "lora_B.bias"))] = delta.float() / scaling
    fields = {
        **fields,
        "target_modules": sorted({*lora_modules, *deltas}),
        "rank_pattern": rank,
        "alpha_pattern": alpha,
        "lora_bias": True,
        "init_lora_weights": True,  # PEFT allows lora_bias with no other, and nothing is initialized any more
    }
    return LoraConfig(**fields), tensors


def _lora_modules(config: SpafitConfig, tensors: dict[str, torch.Tensor]) -> list[str]:
    names = (TensorName.parse(key) for key in tensors)
    with_lora = {name.module for name in names if name and name.part == "lora_A.weight"}
    return sorted(with_lora - expert_wrappers(config.target_parameters or ()))


def _pattern(pattern: dict[str, Any], default: Any, modules: list[str]) -> dict[str, Any]:
    """A pattern of PEFT's, written out: full module names, only where the value is not the default."""
    values = {module: pattern.get(get_pattern_key(list(pattern), module), default) for module in modules}
    return {module: value for module, value in values.items() if value != default}


def _alphas(config: SpafitConfig, ranks: dict[str, int], modules: list[str]) -> dict[str, float]:
    """Alpha per module, such that PEFT's one `use_rslora` for all modules gives each its own scaling."""
    alphas = _pattern(config.alpha_pattern, config.lora_alpha, modules)
    for module in modules:
        own = config.module_settings.get(get_pattern_key(list(config.module_settings), module), {})
        if own.get("use_rslora", config.use_rslora) != config.use_rslora:
            root = math.sqrt(ranks.get(module, config.r))
            factor = root if not config.use_rslora else 1 / root
            alphas[module] = alphas.get(module, config.lora_alpha) * factor
    return alphas


def _config_json(config: LoraConfig, model: nn.Module, sidecar: Sidecar) -> str:
    data = config.to_dict()
    data["peft_type"] = SpafitPeftType.SPAFIT.value if isinstance(config, SpafitConfig) else "LORA"
    data["base_model_name_or_path"] = data["base_model_name_or_path"] or sidecar.base.name_or_path
    data["inference_mode"] = True
    # PEFT adds its names of heads to those that are there already.
    data["modules_to_save"] = list(dict.fromkeys(data["modules_to_save"] or ())) or None
    if data["task_type"] is None:
        # so that PEFT's Auto classes find the class of a model that has no task type of PEFT's
        base = model.get_base_model()  # type: ignore[operator]
        data["auto_mapping"] = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return json.dumps(data, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} does not belong into {CONFIG_FILE}")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What cannot be written, as on a full disk, is an `AdapterError` that names the folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = last_line(error)
        raise AdapterError(f"{folder} cannot be written: {reason}") from error


def _write(folder: Path, config: str, tensors: dict[str, torch.Tensor], sidecar: Sidecar, plain: nn.Module) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch:
            staged = Path(scratch)
            ordered = {key: tensors[key].detach().to("cpu").contiguous().clone() for key in sorted(tensors)}
            save_file(ordered, staged / WEIGHTS_FILE, metadata={"format": "pt"})
            (staged / CONFIG_FILE).write_text(config, encoding="utf-8")
            (staged / SIDECAR_FILE).write_text(sidecar.to_json(), encoding="utf-8")
            check_written(staged, plain)
            # The configuration last: a folder without one is no adapter to anybody.
            for name in (WEIGHTS_FILE, SIDECAR_FILE, CONFIG_FILE):
                shutil.move(staged / name, folder / name)
