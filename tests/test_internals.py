"""docs/internals.md is true: every internal in its tables is there as it was, and none is used that is not in them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import spafit_hf

ROOT = Path(__file__).parents[1]
TABLES = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "internals.md").read_text(encoding="utf-8"), re.MULTILINE)
SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "spafit_hf").rglob("*.py")}
OTHERS = ("peft", "transformers", "accelerate", "torch")

#: Modules from which whatever is imported counts as an internal.
DEEP = r"peft\..+|transformers\.(trainer|trainer_pt_utils|pytorch_utils|modeling_layers)"

#: Private by their looks, documented in Python's own library.
PUBLIC = {"_replace", "_SubParsersAction", "_exit"}

# What the functions take, in order; a keyword without a default comes last, as inspect.getfullargspec has it.
PARAMETERS = {
    "peft.tuners.lora.LoraModel._prepare_adapter_config": "self peft_config model_config",
    "peft.tuners.lora.LoraModel._check_target_module_exists": "peft_config key",
    "peft.tuners.lora.LoraModel._get_module_names_tied_with_embedding": "self",
    "peft.tuners.lora.LoraModel._create_and_replace": (
        "self lora_config adapter_name target target_name parent current_key parameter_name"
    ),
    "peft.tuners.lora.LoraModel._create_new_module": "lora_config adapter_name target **kwargs",
    "peft.tuners.lora.LoraModel._cast_adapter_dtype": "self adapter_name autocast_adapter_dtype",
    "peft.tuners.lora.LoraModel._get_adapter_state_dict": (
        "cls model config adapter_name state_dict unwanted_adapter_names"
    ),
    "peft.tuners.lora.LoraModel._remap_adapter_state_dict_for_load": "cls model config adapter_name state_dict",
    "peft.tuners.lora.LoraModel._enable_peft_forward_hooks": "self *args **kwargs",
    "peft.tuners.lora.LoraModel._unload_and_optionally_merge": "self merge progressbar safe_merge adapter_names",
    "peft.tuners.lora.LoraModel.train": "self mode",
    "peft.tuners.lora.LoraModel.set_adapter": "self adapter_name inference_mode",
    "peft.tuners.lora.LoraModel.delete_adapter": "self adapter_name",
    "peft.tuners.lora.LoraModel.disable_adapter_layers": "self",
    "peft.tuners.lora.LoraModel.enable_adapter_layers": "self",
    "peft.tuners.lora.LoraModel.merge_adapter": "self adapter_names safe_merge",
    "peft.tuners.lora.LoraModel.add_weighted_adapter": (
        "self adapters weights adapter_name combination_type svd_rank svd_clamp svd_full_matrices "
        "svd_driver density majority_sign_method"
    ),
    "peft.tuners.lora.LoraLayer._get_in_out_features": "self module",
    "peft.tuners.lora.LoraLayer._mixed_batch_forward": "self x *args adapter_names **kwargs",
    "peft.tuners.lora.LoraLayer._move_adapter_to_device_of_base_layer": "self adapter_name device",
    "peft.tuners.lora.LoraLayer.supports_lora_conversion": "self adapter_name",
    "peft.tuners.lora.LoraLayer.merge": "self safe_merge adapter_names",
    "peft.tuners.lora.LoraLayer.unmerge": "self",
    "peft.tuners.lora.LoraModel.inject_adapter": (
        "self model adapter_name autocast_adapter_dtype low_cpu_mem_usage state_dict"
    ),
    "peft.tuners.lora.ParamWrapper.merge": "self safe_merge adapter_names",
    "peft.tuners.lora.ParamWrapper.unmerge": "self",
    "peft.tuners.lora.ParamWrapper._remove_parametrizations": "self",
    "peft.tuners.lora.LoraLayer._check_forward_args": "self x *args **kwargs",
    "peft.tuners.lora.LoraModel._replace_module": "self parent child_name new_module child",
    "peft.tuners.lora.model._adapter_names_pre_forward_hook": "target args kwargs adapter_names",
    "peft.tuners.lora.model._get_encoder": "model",
    "peft.tuners.tuners_utils.check_target_module_exists": "config key",
    "peft.tuners.tuners_utils.check_adapters_to_merge": "module adapter_names",
    "peft.utils.integrations.dequantize_module_weight": "module",
    "peft.utils.merge_utils.dare_linear": "task_tensors weights density",
    "peft.utils.merge_utils.dare_ties": "task_tensors weights density majority_sign_method",
    "peft.utils.merge_utils.magnitude_prune": "task_tensors weights density",
    "peft.utils.merge_utils.task_arithmetic": "task_tensors weights",
    "peft.utils.merge_utils.ties": "task_tensors weights density majority_sign_method",
    "peft.utils.transformers_weight_conversion.convert_peft_adapter_state_dict_for_transformers": (
        "model peft_config adapter_state_dict adapter_name"
    ),
    "peft.utils.transformers_weight_conversion.convert_peft_config_for_transformers": "peft_config model conversions",
    "peft.utils.other.get_pattern_key": "pattern_keys key_to_match",
    "transformers.Trainer._prepare_for_training": "self max_steps train_dataloader resume_from_checkpoint",
    "transformers.Trainer._run_epoch": (
        "self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
        "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained "
        "steps_trained_in_current_epoch"
    ),
    "transformers.Trainer._save_rng_state": "self output_dir",
    "transformers.Trainer._load_rng_state": "self checkpoint",
    "transformers.Trainer._get_train_sampler": "self train_dataset",
    "transformers.Trainer._get_eval_sampler": "self eval_dataset",
    "transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding.create_weight": "self",
    "transformers.Trainer._get_learning_rate": "self",
    "transformers.Trainer._build_accelerator_args": "self **kwargs",
    "transformers.Trainer._save": "self output_dir state_dict",
    "transformers.Trainer._issue_warnings_after_load": "self load_result",
    "transformers.Trainer._load_from_checkpoint": "self resume_from_checkpoint model",
    "transformers.Trainer._load_optimizer_and_scheduler": "self checkpoint",
    "transformers.Trainer._push_from_checkpoint": "self checkpoint_folder",
    "transformers.Trainer._finish_current_push": "self",
    "transformers.Trainer._get_dataloader": (
        "self dataset description batch_size sampler_fn is_training dataloader_key"
    ),
    "transformers.Trainer._get_collator_with_removed_columns": "self data_collator description",
    "transformers.Trainer._prepare_inputs": "self inputs",
    "transformers.Trainer._hp_search_setup": "self trial",
    "transformers.trainer_pt_utils.find_batch_size": "tensors",
    "transformers.trainer_pt_utils.get_length_grouped_indices": "lengths batch_size mega_batch_mult generator",
    "transformers.trainer_pt_utils.get_model_param_count": "model trainable_only",
}


def find(name: str) -> Any:
    """What a dotted name stands for; the text of its owner's source for what only instances have.

    Raises:
        AttributeError: where it is gone.
    """
    parts = name.split(".")
    owner: Any = None
    for length in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
            break
        except ModuleNotFoundError:
            continue
    for part in parts[length:-1]:
        owner = getattr(owner, part)
    if length == len(parts):
        return owner
    if hasattr(owner, parts[-1]):
        return inspect.getattr_static(owner, parts[-1])
    for each in owner.__mro__ if inspect.isclass(owner) else [owner]:
        if each is not object and re.search(rf"\b{parts[-1]}\b", inspect.getsource(each)):
            return inspect.getsource(each)
    raise AttributeError(f"{'.'.join(parts[:-1])} has no {parts[-1]} any more")


def parameters(function: Any) -> str | None:
    """Names of what a function takes; None for what is no function."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(function):
        return None
    spec = inspect.getfullargspec(function)
    stars = [*([f"*{spec.varargs}"] if spec.varargs else []), *spec.kwonlyargs]
    return " ".join([*spec.args, *stars, *([f"**{spec.varkw}"] if spec.varkw else [])])


@pytest.mark.parametrize("name", TABLES)
def test_an_internal_is_as_it_was(name: str) -> None:
    assert parameters(find(name)) == PARAMETERS.get(name)


@pytest.mark.parametrize("name", TABLES)
def test_an_internal_of_the_tables_is_used(name: str) -> None:
    word = re.compile(rf"\b{name.rpartition('.')[2]}\b")
    assert any(word.search(source) for source in SOURCES.values()), f"{name} is not used; drop its line"


def test_every_internal_is_in_the_tables() -> None:
    parts = [name.split(".") for name in TABLES]
    missing = {
        *(imported() - set(TABLES)),
        *(overridden() - {".".join(each[-2:]) for each in parts}),
        *(touched() - {each[-1] for each in parts}),
    }
    assert not missing, "add a line for each to docs/internals.md"


def overridden() -> set[str]:
    """Private methods of others that a class of the package overrides; within PEFT's tuners public ones as well."""
    found = set()
    for module in pkgutil.walk_packages(spafit_hf.__path__, "spafit_hf."):
        if module.name.endswith("__main__"):
            continue
        for each in vars(importlib.import_module(module.name)).values():
            if not inspect.isclass(each) or each.__module__ != module.name:
                continue
            parents = [base for base in each.__mro__ if base.__module__.split(".")[0] in OTHERS]
            for name in vars(each):
                parent = next((base for base in parents if hasattr(base, name)), None)
                if parent is None or name.startswith("__") or name == "_abc_impl":
                    continue
                in_tuners = parent.__module__.startswith("peft.tuners") and not parent.__name__.endswith("Config")
                if name.startswith("_") or in_tuners:
                    found.add(f"{parent.__name__}.{name}")
    return found


def imported() -> set[str]:
    """Names imported from deep inside others, and names with an underscore."""
    return {
        f"{node.module}.{alias.name}"
        for source in SOURCES.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OTHERS
        for alias in node.names
        if alias.name.startswith("_") or re.fullmatch(DEEP, node.module)
    }


def touched() -> set[str]:
    """Private attributes that are read or called and that no code of the package defines."""
    nodes = [node for source in SOURCES.values() for node in ast.walk(ast.parse(source))]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    private = {node.attr for node in attributes if re.match("_[^_]", node.attr)}
    return private - own - PUBLIC
