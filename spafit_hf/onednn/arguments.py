"""The user's side: a field of the training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OneDnnArguments:
    """The field of oneDNN's products, to be mixed in before `TrainingArguments`."""

    use_onednn: bool = field(
        default=False,
        metadata={
            "help": "On a CPU in fp32: compute products with frozen weights by oneDNN in place of MKL, for batches "
            "whose rows times tokens are a multiple of 64 (pad_to_multiple_of). On AMD's processors a step takes "
            "about a sixth less time; losses differ in their last bits."
        },
    )
