"""How a search trains: what sets its result beside base, rows and budget. Each field is a flag."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCORES = ("gradient", "kappa")
MOST = 2**32
"""NumPy's seeds end there; and no other number here is as large, or NaN."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """The flags."""

    score: str = _option(
        SCORES[0], "what layers are ranked by for N2: relative gradient, or PEFT's condition numbers (kappa)"
    )
    learning_rate: float = _option(1e-3, "of every training; the one you mean to train with")
    num_train_epochs: int = _option(3, "epochs of a training at most; fewer where the time is short")
    per_device_train_batch_size: int = _option(16, "rows per step")
    lora_r: int = _option(16, "rank of LoRA in every cut")
    lora_alpha: float = _option(16.0, "LoRA is scaled by lora_alpha / lora_r")
    warmup_steps: float = _option(0.06, "share of the steps in which the rate rises")
    weight_decay: float = _option(0.01, "AdamW's")
    max_length: int = _option(128, "tokens per text or pair")
    bf16: bool = _option(False, "train in bfloat16 autocast")
    seed: int = _option(0, "of the order of rows, the folds of the probes and the random cut")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            may_be_zero = name in ("warmup_steps", "weight_decay", "seed")
            if not isinstance(value, (str, bool)) and not (0 < value < MOST or (may_be_zero and value == 0)):
                least = "0 or more" if may_be_zero else "above 0"
                raise ValueError(f"--{name} is {value}; it must be {least}, and below {MOST:,}.")

    @property
    def settings(self) -> dict[str, Any]:
        """As a cell of `reproduce` has them."""
        fixed = {"head_factor": 0.0, "train_sampling_strategy": "group_by_length", "first_token_only": "auto"}
        return asdict(self) | fixed
