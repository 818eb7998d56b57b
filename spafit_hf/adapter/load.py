"""Put an adapter folder on a base: checked first, added beside whatever is there, the base untouched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from spafit_hf.adapter.fetch import fetch_adapter
from spafit_hf.adapter.folder import KEY_PREFIX, AdapterError
from spafit_hf.adapter.verify import VerifiedAdapter, verify_adapter
from spafit_hf.tuner import DeltaLayer, SpafitConfig, task_type_of

#: PEFT task type -> the class that makes a base of it.
AUTO_CLASSES = {
    TaskType.SEQ_CLS.value: AutoModelForSequenceClassification,
    TaskType.TOKEN_CLS.value: AutoModelForTokenClassification,
    TaskType.QUESTION_ANS.value: AutoModelForQuestionAnswering,
    TaskType.CAUSAL_LM.value: AutoModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM.value: AutoModelForSeq2SeqLM,
    TaskType.FEATURE_EXTRACTION.value: AutoModel,
}


def load_adapter(
    base: nn.Module | str | os.PathLike[str] | None,
    folder_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    adapter_name: str = "default",
    is_trainable: bool = False,
    token: str | bool | None = None,
) -> PeftModel:
    """Load an adapter additively: the base keeps every bit, and several adapters live on it side by side.

    Args:
        base: a plain model; a `PeftModel` that this function or `get_spafit_model` returned, which gets one adapter
            more; a Hub id or folder to load a model from; or None for the base that the adapter names.
        folder_or_repo: a folder that `save_adapter`, `SpafitTrainer.save_model` or plain PEFT's LoRA wrote, or the
            id of a repository on the Hub.
        revision: branch, tag or commit of the repository; of no use for a folder.
        adapter_name: the adapter's name on this base. The first adapter of a base is active at once, a further one
            after `model.set_adapter(adapter_name)`.
        is_trainable: leave the adapter trainable, to go on with its training.
        token: for a private repository; by default the one that `hf auth login` stored.

    Returns:
        The model with the adapter. It names the outputs of the active adapter's head in its configuration.

    Raises:
        AdapterError: for a folder that does not fit or cannot be trusted; the reason is said and nothing is loaded.
    """
    folder = Path(folder_or_repo)
    if not folder.is_dir():
        folder = fetch_adapter(str(folder_or_repo), revision=revision, token=token).folder
    elif revision is not None:
        raise AdapterError(f"revision={revision!r} was given, but {folder} is a folder here; drop the revision.")
    model = load_base(base, folder) if base is None or isinstance(base, (str, os.PathLike)) else base
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_unmerged(plain)
    _check_name(model, adapter_name)
    adapter = verify_adapter(folder, plain)
    tensors = _native(adapter, plain)
    config = _config(adapter, plain, is_trainable)

    loaded: PeftModel
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config, low_cpu_mem_usage=True)
        loaded = model
    else:
        loaded = get_peft_model(model, config, adapter_name=adapter_name, low_cpu_mem_usage=True)
    _fit_head(loaded.get_base_model(), adapter, adapter_name)
    result = set_peft_model_state_dict(loaded, tensors, adapter_name=adapter_name, low_cpu_mem_usage=True)
    missing = [key for key in result.missing_keys if f".{adapter_name}." in f"{key}."]
    if result.unexpected_keys or missing:  # cannot be after the checks; a silent half would be worse than a stop
        loaded.delete_adapter(adapter_name)
        raise AdapterError(f"PEFT did not take {(result.unexpected_keys or missing)[:3]}; nothing was loaded.")
    if loaded.active_adapters == [adapter_name]:
        loaded.base_model.set_adapter(adapter_name, inference_mode=not is_trainable)
        loaded.eval()
    return loaded


def load_base(base: str | os.PathLike[str] | None, folder: Path) -> nn.Module:
    """The base of an adapter folder, with a head of the adapter's size and its label names.

    Args:
        base: Hub id or folder; None for the one that the adapter names, at the revision it names.
        folder: the adapter.

    Raises:
        AdapterError: if the adapter names no base or no task, or the base cannot be loaded.
    """
    adapter = verify_adapter(folder)
    name = os.fspath(base) if base is not None else adapter.base.name_or_path
    if name is None:
        raise AdapterError(
            f"{folder} does not name its base; give one: load_adapter('google-bert/bert-base-cased', ...)."
        )
    revision = adapter.base.revision if name == adapter.base.name_or_path and not os.path.isdir(name) else None
    if adapter.task_type not in AUTO_CLASSES:
        raise AdapterError(
            f"{folder} has task_type {adapter.task_type!r}, from which no model class follows. Load the base yourself "
            "and give the model: load_adapter(model, folder)."
        )
    extra: dict[str, Any] = {}
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if adapter.labels is not None:
            id2label = {int(index): label for index, label in adapter.labels["id2label"].items()}
            extra = {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}
            config.problem_type = adapter.labels["problem_type"]
        for key, value in extra.items():
            setattr(config, key, value)
        return AUTO_CLASSES[adapter.task_type].from_pretrained(name, config=config, revision=revision)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise AdapterError(f"the base {name!r} cannot be loaded: {reason}") from error


def _check_unmerged(plain: nn.Module) -> None:
    merged = {name for layer in plain.modules() if isinstance(layer, DeltaLayer) for name in layer.merged_adapters}
    if merged:
        raise AdapterError(f"{sorted(merged)} are merged into the base; call model.unmerge_adapter() before loading.")


def _check_name(model: nn.Module, adapter_name: str) -> None:
    taken = sorted(model.peft_config) if isinstance(model, PeftModel) else []
    if adapter_name in taken:
        raise AdapterError(
            f"the model has an adapter {adapter_name!r} already; choose an adapter_name other than {taken}."
        )
    if not adapter_name or "." in adapter_name or adapter_name in "lora_" or adapter_name == "__base__":
        raise AdapterError(
            f"{adapter_name!r} cannot name an adapter: it must not be empty, hold a dot, or be reserved."
        )


def _config(adapter: VerifiedAdapter, plain: nn.Module, is_trainable: bool) -> SpafitConfig:
    task_type = adapter.task_type or task_type_of(plain)
    config = SpafitConfig(
        strategy=adapter.strategy,
        task_type=task_type,
        inference_mode=not is_trainable,
        labels=adapter.labels,
        base_model_name_or_path=adapter.base.name_or_path,
        revision=adapter.base.revision,
    )
    config.fill(adapter.lora, adapter.bias_modules, adapter.head)
    return config


def _native(adapter: VerifiedAdapter, plain: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors under this package's own names: deltas, whatever the form they were stored in."""
    tensors = {}
    for key, tensor in adapter.read_tensors().items():
        name = adapter.tensors[key]
        if not name.module or (
            name.part.startswith("lora_") and name.module in adapter.lora and name.part != "lora_B.bias"
        ):
            tensors[key] = tensor
            continue
        if name.module not in adapter.bias_modules or name.part in ("lora_A.weight", "lora_B.weight"):
            continue  # the zero factors and biases that the lora-bias form is filled up with
        if name.part == "lora_B.bias":
            tensor = tensor * adapter.bias_scaling[name.module]
        elif name.part in ("bias", "base_layer.bias"):
            module = plain.get_submodule(name.module)
            tensor = tensor.float() - module.bias.detach().to("cpu").float()
        tensors[f"{KEY_PREFIX}{name.module}.lora_delta"] = tensor.float()
    return tensors


def _fit_head(plain: nn.Module, adapter: VerifiedAdapter, adapter_name: str) -> None:
    """Give the adapter's copy of the head its own number of outputs, where it differs from the base's."""
    for key, name in adapter.tensors.items():
        if name.module or not name.part.endswith(".weight"):
            continue
        head = next(head for head in adapter.head if name.part.startswith(f"{head}."))
        copy = plain.get_submodule(head).modules_to_save[adapter_name]
        path = name.part.removeprefix(f"{head}.").removesuffix("weight").rstrip(".")
        linear, shape = copy.get_submodule(path), adapter.shapes[key]
        if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) == shape:
            continue
        fitted = nn.Linear(
            shape[1], shape[0], bias=linear.bias is not None, device=linear.weight.device, dtype=linear.weight.dtype
        )
        fitted.requires_grad_(linear.weight.requires_grad)
        if path:
            parent, _, child = path.rpartition(".")
            setattr(copy.get_submodule(parent), child, fitted)
        else:
            plain.get_submodule(head).modules_to_save[adapter_name] = fitted
