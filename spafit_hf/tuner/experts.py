"""LoRA on experts that are one tensor for all: PEFT's wrapper of a parameter, undone bit for bit.

For the time of a pass PEFT puts the parameter with the LoRA of its experts added in the place of the parameter.
"""

from __future__ import annotations

from peft.tuners import lora
from peft.tuners.tuners_utils import check_adapters_to_merge


class ParamWrapper(lora.ParamWrapper):  # PEFT looks for wrappers by this name of their class
    """PEFT's wrapper of a parameter, which keeps what `merge` replaces, and the order of the module's parameters."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the parameter. The tensor that they replace is kept for `unmerge`."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        parameter = self.get_param()
        if not self.merged:
            self._caches["original"] = parameter.data
            parameter.data = parameter.data.clone()  # PEFT merges in place: into the copy
        super().merge(safe_merge=safe_merge, adapter_names=names)

    def unmerge(self) -> None:
        """Put back the very tensor that `merge` replaced, so bit for bit."""
        if not self.merged:
            super().unmerge()  # warns
            return
        self.merged_adapters.clear()
        self.get_param().data = self._caches.pop("original")

    def _remove_parametrizations(self) -> None:
        super()._remove_parametrizations()
        # torch has put it last among the module's, and in their order PEFT nests one wrapper in another.
        parameters = self.get_base_layer()._parameters
        for name in self._caches["order"]:
            if name in parameters:
                parameters[name] = parameters.pop(name)


def adopt_wrapper(wrapper: lora.ParamWrapper) -> ParamWrapper:
    """Make a wrapper that PEFT built one of these."""
    wrapper.__class__ = ParamWrapper
    wrapper._caches["order"] = list(wrapper.get_base_layer()._parameters)
    return wrapper


STARTS = (True, False, None, "gaussian")
"""How LoRA on a parameter may start (None draws nothing); PEFT's others ask its module for a weight."""
