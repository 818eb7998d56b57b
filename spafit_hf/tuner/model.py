"""The tuner: PEFT's LoRA model, with deltas and bottlenecks beside LoRA, and strata in place of one rule for all."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.model import LoraModel
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from spafit_hf.architecture import biases_of, delta_between, is_linear, is_norm
from spafit_hf.architecture.experts import expert_matrices
from spafit_hf.architecture.kinds import keeps_statistics
from spafit_hf.architecture.labels import labels_of
from spafit_hf.planner import plan
from spafit_hf.strategy import Bottleneck
from spafit_hf.tuner.combine import combine_deltas
from spafit_hf.tuner.config import SpafitConfig, rewrites_base
from spafit_hf.tuner.entrance import check_entrance
from spafit_hf.tuner.experts import STARTS, ParamWrapper, adopt_wrapper
from spafit_hf.tuner.fast_path import leave_fast_path, restore_fast_path
from spafit_hf.tuner.labels import apply_labels, check_heads_stack
from spafit_hf.tuner.layer import DeltaLayer, adopt, missing_bias_message, not_linear_message, wrap
from spafit_hf.tuner.masters import make_masters
from spafit_hf.tuner.mixed import BASE, mixed_batch
from spafit_hf.tuner.plain import plain_view
from spafit_hf.tuner.saving import save_as_adapter
from spafit_hf.words import listed


class SpafitModel(LoraModel):
    """Wraps the modules of a model that a `SpafitConfig` names. Created by PEFT, one per base model.

    Overrides what LoRA's tuner decides by LoRA factors alone: which modules to wrap, which adapter names a mixed batch
    may use, whether a merge can succeed, and how deltas combine in `add_weighted_adapter`.
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self._base_labels = labels_of(model)
        super().__init__(model, *args, **kwargs)
        self._name_outputs()
        save_as_adapter(self)

    # ---- from strategy to modules ----

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap what the adapter's configuration names; arguments as in PEFT."""
        config = self.peft_config[adapter_name]
        ours = config.strategy is not None or config.target_parameters
        if not ours or not any(map(expert_matrices, model.modules())):
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        else:
            with warnings.catch_warnings():  # not for every model: Python shows again after it what it had shown once
                # PEFT follows the ranks of experts, and says that it ignored them: it looks among modules alone.
                warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match")
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        leave_fast_path(model)

    def _prepare_adapter_config(self, peft_config: SpafitConfig, model_config: dict[str, Any]) -> SpafitConfig:
        if peft_config.labels is None:
            peft_config.labels = self._base_labels
        if not peft_config.is_planned:
            view = plain_view(self.model)
            the_plan = plan(view, peft_config.strategy)
            check_entrance(view, the_plan)
            planned = SpafitConfig.from_plan(the_plan)  # refuses full fine-tuning, which has no adapter
            peft_config.strategy = planned.strategy
            peft_config.fill(the_plan.lora, the_plan.biases, the_plan.head, the_plan.bottlenecks, the_plan.experts)
            peft_config.start_as_planned(the_plan)
        elif peft_config.target_modules is None and (peft_config.bias_modules is not None or peft_config.bottlenecks):
            peft_config.target_modules = set()  # deltas or bottlenecks alone
        if peft_config.target_parameters and peft_config.init_lora_weights not in STARTS:
            raise ValueError(
                f"init_lora_weights={peft_config.init_lora_weights!r} is nothing for LoRA on experts, which has no "
                "module to start from; allowed are True and 'gaussian'."
            )
        configs = [peft_config, *self.peft_config.values()]
        rewriting = [str(each.init_lora_weights) for each in configs if rewrites_base(each)]
        if rewriting and any(each.bias_modules is not None for each in configs):
            raise ValueError(
                f"init_lora_weights={rewriting[0]!r} moves a part of the base's weights into its adapter, and what "
                "trains in strata leaves the base as it is. Use PEFT's LoraConfig for it, on a base of its own, and "
                "pass the PeftModel to the trainer."
            )
        return super()._prepare_adapter_config(peft_config, model_config)

    def _get_module_names_tied_with_embedding(self) -> list[str]:
        try:
            return super()._get_module_names_tied_with_embedding()
        except NotImplementedError:  # a model without a table of input embeddings: speech, detection
            return []

    @staticmethod
    def _check_target_module_exists(peft_config: SpafitConfig, key: str) -> Any:
        found = check_target_module_exists(peft_config, key)
        if found or isinstance(found, _ExcludedModule):
            return found
        return key in peft_config.bottlenecks or _wants_delta(peft_config, key)

    def _create_and_replace(
        self,
        lora_config: SpafitConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        base = target.get_base_layer() if isinstance(target, LoraLayer) else target
        lora_wanted = parameter_name is not None or bool(check_target_module_exists(lora_config, current_key))
        delta_wanted = parameter_name is None and _wants_delta(lora_config, current_key)
        if lora_wanted and is_norm(base):
            lora_wanted, delta_wanted = False, True
        if is_linear(base):
            lora_config.fan_in_fan_out = isinstance(base, Conv1D)
        if lora_wanted:
            own = lora_config.module_settings.get(get_pattern_key(list(lora_config.module_settings), current_key), {})
            settings = _changed(lora_config, **own) if own else lora_config
            super()._create_and_replace(
                settings, adapter_name, target, target_name, parent, current_key, parameter_name=parameter_name
            )
        start = {"zero": lora_config.init_lora_weights is not False, "inference_mode": lora_config.inference_mode}
        if delta_wanted:
            layer = self._delta_layer(current_key, adapter_name)
            layer.add_delta(adapter_name, **start)
            if adapter_name not in self.active_adapters:
                layer.lora_delta[adapter_name].requires_grad_(False)
        if current_key in lora_config.bottlenecks:
            settings = Bottleneck(**lora_config.bottlenecks[current_key])
            source = self._delta_layer(settings.reads, adapter_name) if settings.reads else None
            layer = self._delta_layer(current_key, adapter_name)
            layer.add_bottleneck(adapter_name, settings, source, **start)
            if adapter_name not in self.active_adapters:
                layer.lora_down[adapter_name].requires_grad_(False)
                layer.lora_up[adapter_name].requires_grad_(False)

    def _delta_layer(self, key: str, adapter_name: str) -> DeltaLayer:
        """The layer around a module, which is wrapped for the adapter where no other has done so."""
        parent, _, name = key.rpartition(".")
        module = self.model.get_submodule(key)
        if isinstance(module, DeltaLayer):
            return module
        layer = wrap(module)
        layer._active_adapter = adapter_name
        self._replace_module(self.model.get_submodule(parent), name, layer, module)
        return layer

    @staticmethod
    def _create_new_module(
        lora_config: SpafitConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> nn.Module:
        layer = LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)
        # A wrapped nn.Parameter (target_parameters) has no bias of its own.
        return adopt(layer) if kwargs.get("parameter_name") is None else adopt_wrapper(layer)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            for module in self.model.modules():
                if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
                    make_masters(module.modules_to_save[adapter_name])
            return
        # Deltas are fp32 from the start. Who wants the base's dtype says so, and gets it for them, too.
        for layer in self._delta_layers().values():
            if adapter_name in layer.lora_delta:
                reference = next(layer.get_base_layer().parameters())
                if reference.is_floating_point():
                    layer.lora_delta[adapter_name] = layer.lora_delta[adapter_name].to(reference.dtype)
            if adapter_name in layer.bottlenecks:
                dtype = next(layer.get_base_layer().parameters()).dtype
                for matrices in (layer.lora_down, layer.lora_up) if dtype.is_floating_point else ():
                    matrices[adapter_name].to(dtype)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: SpafitConfig, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        # PEFT writes the magnitudes of DoRA under their old name if the configuration says DoRA; here a module may.
        return super()._get_adapter_state_dict(model, _changed(config, use_dora=True), *args, **kwargs)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: SpafitConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # A portable folder over an adapter that is there, as a stock Trainer resumes: its biases are deltas again.
        native = dict(state_dict)
        for name, layer in model.named_modules():
            if isinstance(layer, DeltaLayer) and adapter_name in layer.lora_delta:
                base = layer.get_base_layer()
                for inner in (name, f"{name}.base_layer"):
                    biases = {key: native.pop(f"{inner}.{key}", None) for key in biases_of(base)}
                    if biases and None not in biases.values():
                        native[f"{name}.lora_delta"] = delta_between(base, biases)
                if (key := f"{name}.lora_B.bias") in native:
                    native[f"{name}.lora_delta"] = native.pop(key).float() * layer.scaling.get(adapter_name, 1.0)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, native)

    def train(self, mode: bool = True) -> SpafitModel:
        """As of any module. What the base's batch norms have seen stays as it is: no adapter folder would hold it."""
        super().train(mode)
        for module in self.model.modules() if mode else ():
            if keeps_statistics(module):
                module.eval()
        return self

    # ---- the names of the head's outputs ----

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters. The model's configuration names the outputs of the (first) active adapter's head."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        self._name_outputs()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; where it was the active one, another becomes active."""
        was_active = adapter_name in self.active_adapters
        left = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        left = left or list(self.peft_config)[:1]
        if was_active and left:
            # PEFT asks the first layer what is left, and there another adapter may have no part.
            inference_mode = self.peft_config[left[0]].inference_mode
            self.set_adapter(left[0] if len(left) == 1 else left, inference_mode=inference_mode)
        self._name_outputs()

    def disable_adapter_layers(self) -> None:
        """Compute what the base computes, under the base's names."""
        super().disable_adapter_layers()
        apply_labels(self.model, self._base_labels)

    def enable_adapter_layers(self) -> None:
        """Inverse of `disable_adapter_layers`."""
        super().enable_adapter_layers()
        self._name_outputs()

    def _name_outputs(self) -> None:
        active = [self.peft_config[name] for name in self.active_adapters if name in self.peft_config]
        labels = next((config.labels for config in active if getattr(config, "labels", None)), None)
        apply_labels(self.model, labels or self._base_labels)

    # ---- batches that mix adapters ----

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # LoRA's own version knows an adapter by its lora_A, so that one of deltas alone would be "non-existing".
        names = kwargs.get("adapter_names")
        if names is None or kwargs.get("alora_offsets") is not None:
            with super()._enable_peft_forward_hooks(*args, **kwargs):
                yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted({name for name in names if name != BASE} - set(self.peft_config))
        if unknown:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}. "
                f"Loaded are: {', '.join(sorted(self.peft_config))}."
            )
        if experts := [name for name, config in self.peft_config.items() if config.target_parameters]:
            raise ValueError(
                f"{listed(experts)} has LoRA on experts, which see tokens and no rows: no batch of this model can mix "
                "adapters. Give each adapter a batch of its own (set_adapter), or a model without that one."
            )
        check_heads_stack(
            {name: self._base_labels if name == BASE else self.peft_config[name].labels for name in names}
        )
        with mixed_batch(self.model, names, kwargs.get("num_beams") or 1):
            yield

    # ---- merge ----

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters (the active ones by default) into the base; `unmerge_adapter` restores it bit for bit.

        Raises:
            ValueError: if it cannot succeed in every module. Then no module has been merged.
        """
        self._check_merge(adapter_names, safe_merge)
        merged_before = {layer: list(layer.merged_adapters) for layer in self._own_layers()}
        try:
            super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        except ValueError:
            for layer, names in merged_before.items():
                if layer.merged_adapters != names:
                    layer.unmerge()
                    if names:
                        layer.merge(adapter_names=names)
            raise

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_merge(adapter_names, safe_merge)
        else:
            apply_labels(self.model, self._base_labels)
            # A base from which nothing is to remain must not keep what an earlier merge wrote into it.
            for layer in self._own_layers():
                if layer.merged:
                    layer.unmerge()
            # PEFT would leave the head of the active adapter in the place of the base's.
            for key, wrapper in list(self.model.named_modules()):
                if isinstance(wrapper, ModulesToSaveWrapper):
                    parent, _, name = key.rpartition(".")
                    setattr(self.model.get_submodule(parent), name, wrapper.original_module)
        self.model.__dict__.pop("save_pretrained", None)  # a plain model saves itself again
        plain = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        restore_fast_path(plain)
        return plain

    def _delta_layers(self) -> dict[str, DeltaLayer]:
        return {key: module for key, module in self.model.named_modules() if isinstance(module, DeltaLayer)}

    def _own_layers(self) -> list[DeltaLayer | ParamWrapper]:
        return [module for module in self.model.modules() if isinstance(module, (DeltaLayer, ParamWrapper))]

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        # PEFT checks module by module while it merges, and would leave a half merged model behind.
        names = self.active_adapters if adapter_names is None else adapter_names
        bottlenecks = [name for name in names if name in self.peft_config and self.peft_config[name].bottlenecks]
        if bottlenecks:
            raise ValueError(not_linear_message(bottlenecks))
        for key, layer in self._delta_layers().items():
            here = [name for name in names if name in layer.lora_delta]
            if here and layer.lacks_bias:
                raise ValueError(missing_bias_message(f"{key} ({type(layer.get_base_layer()).__name__})", here))
        for key, parameter in self.model.named_parameters() if safe_merge else ():
            owner = next((name for name in names if name in key.split(".")), None)
            if owner is not None and not torch.isfinite(parameter).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {owner} seems to be broken: {key} is not "
                    "finite. Nothing was merged."
                )

    # ---- weighted combinations ----

    def add_weighted_adapter(  # type: ignore[override]  # what PEFT takes by place further on is taken by name
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        *,
        density: float | None = None,
        majority_sign_method: str = "total",
        **svd: Any,
    ) -> None:
        """Add an adapter that is a weighted combination of others: LoRA as PEFT combines it, deltas likewise.

        Arguments and errors: see `peft.LoraModel.add_weighted_adapter`.

        Raises:
            ValueError: for adapters of which there is no combination, or none of that type. Then none was added.
        """
        if adapter_name in self.peft_config:
            return
        unknown = sorted(set(adapters) - set(self.peft_config))
        if unknown:
            raise ValueError(
                f"Adapter {unknown[0]} does not exist. Loaded are: {', '.join(sorted(self.peft_config))}."
            )
        layers = self._delta_layers()
        for what, names in (
            ("bottleneck adapters", {name for layer in layers.values() for name in layer.bottlenecks}),
            ("DoRA", {name for layer in layers.values() for name in layer.lora_magnitude_vector}),
        ):
            if have := [name for name in adapters if name in names]:
                raise ValueError(f"{have} has {what}, of which no weighted combination exists.")
        for key, layer in layers.items():
            ranks = sorted({layer.r[name] for name in adapters if layer.has_lora(name)})
            if len(ranks) > 1 and combination_type != "cat" and not combination_type.endswith("svd"):
                raise ValueError(
                    f"{key} has LoRA of ranks {ranks}, and combination_type={combination_type!r} adds matrices of one "
                    "rank; take 'cat' or 'svd'."
                )
        bias_modules = sorted(key for key, layer in layers.items() if set(adapters) & set(layer.lora_delta))
        sparse: dict[str, Any] = {"density": density, "majority_sign_method": majority_sign_method}
        super().add_weighted_adapter(adapters, weights, adapter_name, combination_type, **svd, **sparse)
        config = self.peft_config[adapter_name]
        config.strategy = None  # a combination carries out no single strategy
        config.bias_modules = bias_modules or self.peft_config[adapters[0]].bias_modules
        # Its matrices hold the scaling of those they are from, and rsLoRA would scale them again.
        config.use_rslora = False
        config.module_settings = {
            module: {name: value for name, value in settings.items() if name != "use_rslora"}
            for module, settings in config.module_settings.items()
        }
        for key, layer in self._delta_layers().items():
            if layer.has_lora(adapter_name):
                table = adapter_name in layer.lora_embedding_A
                matrix = layer.lora_embedding_A[adapter_name] if table else layer.lora_A[adapter_name].weight
                rank = matrix.shape[0]
                layer.r[adapter_name] = layer.lora_alpha[adapter_name] = rank
                layer.scaling[adapter_name] = 1.0
                if rank != config.r:
                    config.rank_pattern[key] = config.alpha_pattern[key] = rank
            here = [(name, weight) for name, weight in zip(adapters, weights, strict=True) if name in layer.lora_delta]
            if here:
                combine_deltas(layer, here, adapter_name, combination_type, density, majority_sign_method)


def _changed(config: SpafitConfig, **fields: Any) -> SpafitConfig:
    """A configuration with other fields, unchecked. A shallow copy: PEFT reads plain fields from it."""
    changed = copy.copy(config)
    vars(changed).update(fields)
    return changed


def _wants_delta(config: SpafitConfig, key: str) -> bool:
    if config.strategy is not None:  # a plan's names are whole, and one may be the end of another's
        return key in (config.bias_modules or ())
    # PEFT's rules for names, name endings, regular expressions, exclusions and layer indices, asked of bias_modules.
    as_targets = _changed(config, target_modules=config.bias_modules)
    return bool(config.bias_modules and check_target_module_exists(as_targets, key))
