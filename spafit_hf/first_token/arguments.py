"""The user's side: a field of the training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from spafit_hf.onednn.arguments import OneDnnArguments

MODES = ("auto", "on", "off")


@dataclass
class FirstTokenArguments(OneDnnArguments):
    """The field of the narrowed last layer, to be mixed in before `TrainingArguments`.

    Raises:
        ValueError: for a mode that does not exist.
    """

    first_token_only: str = field(
        default="auto",
        metadata={
            "help": "Compute the last layer for the first token alone where the head reads no other, as in "
            "classifiers on BERT; the first batch is run both ways, and any difference turns this off. 'auto': in "
            "evaluation and prediction with an adapter, and in training that uses the prefix cache; 'on': also in "
            "other training, where dropout draws fewer numbers and a seed so gives another run; 'off'.",
            "choices": list(MODES),
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the next class in line is TrainingArguments
        if self.first_token_only not in MODES:
            raise ValueError(f"first_token_only is {self.first_token_only!r}; allowed are {', '.join(MODES)}.")
