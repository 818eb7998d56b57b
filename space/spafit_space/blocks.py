"""`gr.Blocks` that prints nothing of what it is sent, and fills in what a program leaves out."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

REFUSED = "A value that was sent does not fit its field; load the page again, and choose from what it offers."


class QuietBlocks(gr.Blocks):
    """Blocks whose own refusals hold nothing that was typed.

    Where Gradio refuses inputs before a function is called, it prints a traceback that ends in those inputs.
    """

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Refuse a call with too few values.

        Raises:
            gr.Error: with names and numbers alone.
        """
        if len(inputs) < len(block_fn.inputs):
            names = [*inspect.signature(block_fn.fn).parameters][: len(block_fn.inputs)]
            needed = [name for name, box in zip(names, block_fn.inputs, strict=False) if not _has_default(box)]
            raise gr.Error(
                f"Too few values came ({len(inputs)}); {block_fn.api_name} needs one for each of {', '.join(needed)}.",
                print_exception=False,
            )

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """The inputs as the function takes them, defaults of an endpoint for those that are missing at the end.

        Raises:
            gr.Error: for inputs that do not fit, and for a function that runs in the browser alone.
        """
        if block_fn.fn is None:
            raise gr.Error("This is done in the browser; there is nothing to call here.", print_exception=False)
        missing = block_fn.inputs[len(inputs) :]
        if all(_has_default(box) for box in missing):
            inputs = [*inputs, *(box.value for box in missing)]
        self.validate_inputs(block_fn, inputs)
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception:  # noqa: BLE001  whatever it is, its words may be the visitor's
            refused = gr.Error(REFUSED, print_exception=False)
        raise refused


def _has_default(box: Any) -> bool:
    # The page sends all of its boxes; what stands in one at first is no default.
    return isinstance(box, Api) and box.value is not None
