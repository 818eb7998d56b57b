"""The user's side: fields of the training arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from spafit_hf.first_token.arguments import FirstTokenArguments

DTYPE_NAMES = ("float16", "bfloat16", "float32")


@dataclass
class PrefixCacheArguments(FirstTokenArguments):
    """The fields of the prefix cache, to be mixed in before `TrainingArguments`.

    Raises:
        ValueError: for a dtype or a number of bytes that cannot be.
    """

    prefix_cache: str = field(
        default="off",
        metadata={
            "help": "Keep the hidden states at the border of the frozen layers on disk and compute them once: 'off', "
            "'auto' (in the Hugging Face cache folder), or a folder. Dropout in the frozen layers is off then."
        },
    )
    prefix_cache_max_bytes: int = field(
        default=20_000_000_000,
        metadata={"help": "Bytes that the cache's folder may take; examples beyond that are computed in each pass."},
    )
    prefix_cache_dtype: str = field(
        default="float16",
        metadata={
            "help": "Type of the stored states: float16 (checked for range), bfloat16, or float32 (exact).",
            "choices": list(DTYPE_NAMES),
        },
    )
    prefix_cache_drop_weights: bool = field(
        default=False,
        metadata={"help": "Take the frozen layers' weights out of memory while their states are read from disk."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prefix_cache:
            raise ValueError("prefix_cache is empty; allowed are off, auto, or a folder.")
        if self.prefix_cache_dtype not in DTYPE_NAMES:
            raise ValueError(
                f"prefix_cache_dtype is {self.prefix_cache_dtype!r}; allowed are {', '.join(DTYPE_NAMES)}."
            )
        if self.prefix_cache_max_bytes < 0:
            raise ValueError(
                f"prefix_cache_max_bytes is {self.prefix_cache_max_bytes}; it must be 0 or more, as in "
                "--prefix_cache_max_bytes 20000000000."
            )
