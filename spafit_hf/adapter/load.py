"""Put an adapter folder on a base: checked first, added beside whatever is there, the base untouched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig

from spafit_hf.adapter.fit import head_output
from spafit_hf.adapter.folder import BOTTLENECK_PARTS, KEY_PREFIX, AdapterError
from spafit_hf.adapter.pair import is_half, load_seq2seq
from spafit_hf.adapter.verified import VerifiedAdapter
from spafit_hf.adapter.verify import look_at, verify_and_read
from spafit_hf.architecture import biases_of, delta_between
from spafit_hf.architecture.experts import by_module, expert_wrappers
from spafit_hf.architecture.labels import labels_of
from spafit_hf.hub import HubError, Pulled, hub_is_away, pull_adapter
from spafit_hf.hub.pull import MAX_BYTES
from spafit_hf.names import AUTO_CLASSES, published_base, resolve_base
from spafit_hf.tuner import SpafitConfig, SpafitModel
from spafit_hf.tuner.entrance import name_obstacle
from spafit_hf.tuner.plain import base_of, plain_view
from spafit_hf.words import first_line


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
        base: a plain model, whose wrapper of torch.compile or DataParallel is taken off; a `PeftModel` that this
            function or `get_spafit_model` returned, which gets one adapter more; a Hub id or folder to load a model
            from; or None for the base that the adapter names.
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
    folder = local_folder(folder_or_repo, revision=revision, token=token)
    if isinstance(base, nn.Module):
        model: Any = extract_model_from_parallel(base, keep_torch_compile=False)
    else:
        model = load_base(base, folder)
    plain = base_of(model)
    _check_base_is_whole(model, plain)
    _check_name(model, adapter_name)
    view = plain_view(plain)
    adapter, stored = verify_and_read(folder, view)
    _check_beside(model, adapter)
    touched = tuple(f"{name}." for name in (*adapter.lora, *adapter.bias_modules, *adapter.head))
    if any(name.startswith(touched) for name, parameter in view.named_parameters() if parameter.is_meta):
        raise AdapterError("the base is on the meta device or offloaded; load it into memory or onto a device first.")
    tensors = native_tensors(adapter, view, stored)
    config = _config(adapter, view, is_trainable)
    is_training = isinstance(model, PeftModel) and model.training
    loaded = _add(model, config, adapter, adapter_name, tensors)
    if loaded is model and loaded.active_adapters == [adapter_name]:
        loaded.base_model.set_adapter(adapter_name, inference_mode=not is_trainable)
    return loaded.train(is_training)  # new modules, such as LoRA's dropout, start in training mode


MANY_NAMES = 100


class _Exact(dict[str, Any]):
    """A pattern of full names. PEFT compiles and tries each key for each module, and looks the module up where it has
    found none: here it finds no keys. Past Python's cache of 512 expressions 600 names took it six seconds."""

    def keys(self) -> Any:
        return ()

    def __iter__(self) -> Any:
        return iter(())


@contextmanager
def _looked_up(config: SpafitConfig) -> Iterator[None]:
    """Long patterns as `_Exact` while PEFT reads them."""
    patterns = {name: getattr(config, name) for name in ("rank_pattern", "alpha_pattern", "module_settings")}
    long = {name: pattern for name, pattern in patterns.items() if len(pattern) > MANY_NAMES}
    for name, pattern in long.items():
        setattr(config, name, _Exact(pattern))
    try:
        yield
    finally:
        for name, pattern in long.items():
            setattr(config, name, pattern)


def _add(
    model: nn.Module,
    config: SpafitConfig,
    adapter: VerifiedAdapter,
    adapter_name: str,
    tensors: dict[str, torch.Tensor],
) -> PeftModel:
    """Put a verified adapter on the model, wholly or not at all."""
    loaded: PeftModel | None = model if isinstance(model, PeftModel) else None
    complete = False
    try:
        with _looked_up(config):
            if loaded is None:
                loaded = get_peft_model(model, config, adapter_name=adapter_name)
            else:
                loaded.add_adapter(adapter_name, config)
        plain = loaded.get_base_model()
        _fit_head(plain, adapter, adapter_name)
        _fill(loaded, adapter, adapter_name, tensors)
        config.init_lora_weights = True
        complete = True
    finally:
        if not complete and loaded is not None:
            if loaded is model:
                if adapter_name in loaded.peft_config:
                    loaded.delete_adapter(adapter_name)
            else:
                loaded.unload()
    return loaded


def _fill(model: PeftModel, adapter: VerifiedAdapter, adapter_name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write the tensors into the adapter's parameters, as PEFT does, which looks through the whole model for them."""
    places = parameter_places(model.get_base_model(), adapter_name)
    # PEFT gives a head to every adapter for classification: to one that brings none, a copy of the base's.
    own = tuple(f"{KEY_PREFIX}{head}." for head in adapter.head)
    wanted = {key for key, (name, _) in places.items() if ".modules_to_save." not in name or key.startswith(own)}
    odd = sorted((wanted ^ set(tensors)) - (set(places) & set(tensors)))
    odd += [key for key, tensor in tensors.items() if key in places and places[key][1].shape != tensor.shape]
    if odd:
        raise AdapterError(f"{odd[:3]} did not find their places in the model; nothing was loaded.")
    if any(type(parameter.data) is not torch.Tensor for _, parameter in places.values()):
        # Under tensor parallelism each process has a piece of them, and PEFT knows which.
        whole = {**{key: parameter.detach() for key, (_, parameter) in places.items()}, **tensors}
        set_peft_model_state_dict(model, whole, adapter_name=adapter_name)
        return
    with torch.no_grad():
        for key, tensor in tensors.items():
            places[key][1].copy_(tensor)


def parameter_places(plain: nn.Module, adapter_name: str) -> dict[str, tuple[str, nn.Parameter]]:
    """An adapter's parameters and their names in the model, by the names that they have in a file."""
    places = {}
    for name, parameter in plain.named_parameters():  # one name of each, as in a file: two towers may be one module
        path = name.split(".")
        if adapter_name in path:  # no module has this name (`_check_name`)
            kept = (part for part in path if part not in (adapter_name, "modules_to_save"))
            # DoRA's magnitude is the weight of a module that its name in a file does not tell.
            key = KEY_PREFIX + ".".join(kept).replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
            places[key] = (name, parameter)
    return places


def fetch_adapter(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None, max_bytes: int = MAX_BYTES
) -> Pulled:
    """Download an adapter's files into the Hub's cache, as `spafit_hf.hub.pull_adapter` does; an AdapterError where it
    cannot."""
    try:
        return pull_adapter(repo_id, revision=revision, token=token, max_bytes=max_bytes)
    except HubError as error:
        raise AdapterError(f"{repo_id} is no folder here. {error}") from error


def local_folder(
    folder_or_repo: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> Path:
    """An adapter's folder on this machine: the given one, or the download of a repository."""
    folder = Path(folder_or_repo)
    if not os.path.isdir(folder):  # of a name that is too long for a disk pathlib raises
        return fetch_adapter(str(folder_or_repo), revision=revision, token=token).folder
    if revision is not None:
        raise AdapterError(f"revision={revision!r} was given, but {folder} is a folder here; drop the revision.")
    return folder


def load_base(base: str | os.PathLike[str] | None, folder: Path) -> nn.Module:
    """The base of an adapter folder, with a head of the adapter's size and its label names.

    Args:
        base: Hub id or folder; None for the one that the adapter names, at the revision it names.
        folder: the adapter.
    """
    adapter = look_at(folder)
    name = os.fspath(base) if base is not None else adapter.base.name_or_path
    if name is None:
        raise AdapterError(f"{folder} does not name its base; give one: load_adapter('user/bert-base', ...).")
    revision = adapter.base.revision if name == adapter.base.name_or_path and not os.path.isdir(name) else None
    if adapter.task_type not in AUTO_CLASSES:
        raise AdapterError(
            f"{folder} has task_type {adapter.task_type!r}, from which no model class follows. Load the base yourself "
            "and give the model: load_adapter(model, folder)."
        )
    source = resolve_base(name)
    where = {"revision": revision, "trust_remote_code": False, "local_files_only": hub_is_away(source)}
    try:
        config = AutoConfig.from_pretrained(source, **where)
        if adapter.labels is not None:
            id2label = {int(index): label for index, label in adapter.labels["id2label"].items()}
            config.id2label, config.label2id = id2label, {label: index for index, label in id2label.items()}
            config.problem_type = adapter.labels["problem_type"]
        if adapter.task_type == "SEQ_2_SEQ_LM" and is_half(config):
            model = load_seq2seq(source, **where)
        else:
            model = getattr(transformers, AUTO_CLASSES[adapter.task_type]).from_pretrained(
                source, config=config, **where, adapter_kwargs={"local_files_only": where["local_files_only"]}
            )
    except Exception as error:  # on broken files transformers raises whatever it stumbles over
        raise AdapterError(f"the base {name!r} cannot be loaded: {first_line(error)}") from error
    if source != name:
        model.config._name_or_path = model.name_or_path = published_base(name)  # what any machine can load it by
    return model


def _check_base_is_whole(model: nn.Module, plain: nn.Module) -> None:
    layers = [module for module in plain.modules() if isinstance(module, BaseTunerLayer)]
    if layers and not isinstance(model, PeftModel):
        raise AdapterError(
            "the base already has adapters in it; give the PeftModel that the first load_adapter (or "
            "get_spafit_model) returned, which gets one more."
        )
    if isinstance(model, PeftModel) and not isinstance(model.base_model, SpafitModel):
        raise AdapterError(
            f"the model is wrapped for {type(model.base_model).__name__}, beside which no adapter of this package can "
            "stand; give the plain model (model.unload() returns it)."
        )
    merged = sorted({name for layer in layers for name in layer.merged_adapters})
    if merged:
        raise AdapterError(f"{merged} are merged into the base; call model.unmerge_adapter() before loading.")


def _check_name(model: nn.Module, adapter_name: str) -> None:
    taken = sorted(model.peft_config) if isinstance(model, PeftModel) else []
    if adapter_name in taken:
        raise AdapterError(
            f"the model has an adapter {adapter_name!r} already; choose an adapter_name other than {taken}."
        )
    if obstacle := name_obstacle(model, adapter_name):
        raise AdapterError(obstacle)


def _check_beside(model: nn.Module, adapter: VerifiedAdapter) -> None:
    """Refuse LoRA on other experts than those of an adapter that is there, in whose wrappers PEFT would put theirs,
    and LoRA on experts whose biases have a delta, or the reverse."""
    for name, config in model.peft_config.items() if isinstance(model, PeftModel) else ():
        theirs, mine = set(config.target_parameters or ()), set(adapter.experts)
        both = set(by_module(theirs)).intersection(adapter.bias_modules)
        both |= set(by_module(mine)).intersection(config.bias_modules or ())
        if both or (theirs and mine and theirs != mine):
            what = f"deltas on {min(both)}, where the other has LoRA" if both else "LoRA on other experts"
            raise AdapterError(
                f"it cannot stand beside the adapter {name!r}: one of the two has {what}. Give it a base of its own."
            )


def _config(adapter: VerifiedAdapter, plain: nn.Module, is_trainable: bool) -> SpafitConfig:
    config = SpafitConfig(
        task_type=adapter.task_type,
        inference_mode=not is_trainable,
        labels=adapter.labels or _unnamed_labels(adapter, plain),
        base_model_name_or_path=adapter.base.name_or_path,
        revision=adapter.base.revision,
    )
    config.init_lora_weights = None  # type: ignore[assignment]  # what it would draw is overwritten at once
    config.strategy = adapter.strategy
    config.fill(adapter.lora, adapter.bias_modules, adapter.head, adapter.bottlenecks, adapter.experts)
    return config


def _unnamed_labels(adapter: VerifiedAdapter, plain: nn.Module) -> dict[str, Any] | None:
    """Labels for a head without names (plain PEFT stores none) that has another number of outputs than the base's."""
    base_labels = labels_of(plain)
    shapes = adapter.head_shapes()
    output = [name for name in head_output(plain, adapter.head) if name in shapes]
    if base_labels is None or not output or shapes[output[0]][0] == base_labels["num_labels"]:
        return None
    rows = shapes[output[0]][0]
    return {
        "num_labels": rows,
        "id2label": {str(index): f"LABEL_{index}" for index in range(rows)},
        "problem_type": None,
    }


def native_tensors(
    adapter: VerifiedAdapter, plain: nn.Module, stored: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Tensors as `verify_and_read` gives them, under this package's own names: deltas, whatever form they were stored
    in."""
    tensors = {}
    biases, with_lora = set(adapter.bias_modules), {*adapter.lora, *expert_wrappers(adapter.experts)}
    absolute: dict[str, dict[str, torch.Tensor]] = {}
    for key, name in adapter.tensors.items():
        tensor = stored[key]
        if (
            not name.module
            or name.part in BOTTLENECK_PARTS
            or (name.part.startswith("lora_") and name.module in with_lora and name.part != "lora_B.bias")
        ):
            tensors[key] = tensor
            continue
        if name.module not in biases or name.part in ("lora_A.weight", "lora_B.weight"):
            continue  # the zero factors and biases that PEFT asks for beside those
        if name.part == "lora_B.bias":
            tensor = tensor * adapter.bias_scaling[name.module]
        elif name.part != "lora_delta":
            module, own = plain.get_submodule(name.module), absolute.setdefault(name.module, {})
            own[name.part.removeprefix("base_layer.")] = tensor
            if own.keys() != biases_of(module).keys():
                continue  # experts have several, for one delta
            tensor = delta_between(module, own)
        delta = f"{KEY_PREFIX}{name.module}.lora_delta"
        tensors[delta] = tensors[delta] + tensor.float() if delta in tensors else tensor.float()
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
