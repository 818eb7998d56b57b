"""TrainingArguments with the strata beside them: every choice of the method as a flat field.

    --strategy spafit-4-9-II --lora_r 16 --head_learning_rate 1e-3      command line, YAML, JSON, dict, HPO

The fields are strings, numbers and booleans with defaults that are never None: hyperparameter search casts a
trial's value with `type(default)(value)`. -1 says "not set" wherever a number may be left open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainingArguments

from spafit_hf.shortcuts.cache import DTYPES
from spafit_hf.strategy import INIT_LORA_WEIGHTS, LORA_SETTINGS, Strategy, StrategyLike
from spafit_hf.strategy.reading import SUFFIXES
from spafit_hf.words import listed

DEFAULT_STRATEGY = "spafit-4-9-II"
"""The method of Table 2 that comes closest to full fine-tuning."""

NOT_SET = -1
"""What a number is when it is left open."""

COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
"""Fields of TrainingArguments that are counts, of which transformers looks at none."""

FIRST_TOKEN_MODES = ("auto", "on", "off")
PREFIX_CACHE_MODES = ("auto", "off")
NO_FOLDERS = ("", "on", "yes", "no", "true", "false", "none", *PREFIX_CACHE_MODES)
"""What is meant as a switch, in whatever case, where a folder could stand."""


def option(default: Any, text: str, choices: Iterable[str] | None = None) -> Any:
    """A field as HfArgumentParser reads it: with a help text, and with what it may be."""
    return field(default=default, metadata={"help": text} | ({"choices": list(choices)} if choices else {}))


@dataclass
class StrataArguments:
    """The fields that `SpafitTrainingArguments` and `SpafitSeq2SeqTrainingArguments` add.

    The paper trained with learning_rate 6e-5 (2e-5 for full fine-tuning), weight_decay 0.01, 10 epochs and batches
    of 16 (arXiv:2405.00201, section 4). The defaults of transformers (5e-5, 0.0, 3 and 8) stay: ask for the paper's.

    Raises:
        ValueError: for a strategy that does not exist, a bound, a LoRA setting or a learning rate that cannot be.
    """

    strategy: str = option(
        DEFAULT_STRATEGY,
        "What trains where: spafit-N1-N2-I, spafit-N1-N2-II, full, bitfit, lora-I, lora-II, series-adapter, "
        "parallel-adapter, linear-probe, or the path of a .yaml or .json file with strata.",
    )
    architecture: str = option(
        "",
        "A .yaml or .json file that says where layers, sub-layers and head of the model are, for models in which they "
        "are not found (docs/by_hand.md).",
    )
    n1: int = option(
        NOT_SET,
        "Last layer of group 1 (frozen), from zero, in the model's own depth. With --n2 it overrides the numbers in "
        "the strategy's name. -1: not set.",
    )
    n2: int = option(
        NOT_SET, "Last layer of group 2 (biases), from zero, in the model's own depth. Goes with --n1. -1: not set."
    )
    lora_r: int = option(64, "Rank of LoRA in every stratum that does not state its own.")
    lora_alpha: float = option(128.0, "LoRA is scaled by lora_alpha / lora_r.")
    lora_dropout: float = option(0.0, "Dropout on the input of LoRA, from 0 to below 1.")
    use_rslora: bool = option(False, "Scale LoRA by lora_alpha / sqrt(lora_r) (rsLoRA).")
    use_dora: bool = option(False, "Train magnitude and direction apart (DoRA).")
    init_lora_weights: str = option(
        "default",
        "How LoRA starts where a stratum does not say: default (Kaiming uniform), gaussian, orthogonal.",
        INIT_LORA_WEIGHTS,
    )
    init_adapter: str = option(
        "",
        "Adapter folder or Hub id whose LoRA and bias deltas this adapter starts with, such as one of a task with "
        "more rows; the head starts anew. It has to be of the same base, strategy, rank and alpha.",
    )
    bias_learning_rate: float = option(-1.0, "Learning rate of the bias deltas. -1: the same as --learning_rate.")
    head_learning_rate: float = option(
        -1.0,
        "Learning rate of the task head. -1: the same as --learning_rate, and 10 times it where the base's pooler was "
        "never trained and stays frozen.",
    )
    train_sampling_strategy: str = option(
        "group_by_length",
        "Sampler for training: 'group_by_length' (default; 'random' where examples have no length), 'random', "
        "'sequential', or 'batch_rebalance'.",
        ("random", "sequential", "group_by_length", "batch_rebalance"),
    )
    first_token_only: str = option(
        "auto",
        "Compute the last layer for the first token alone where the head reads no other, as in classifiers on BERT; "
        "the first batch is run both ways, and any difference turns this off. 'auto': in evaluation and prediction "
        "with an adapter, and in training that uses the prefix cache; 'on': also in other training, where dropout "
        "draws fewer numbers and a seed so gives another run; 'off'.",
        FIRST_TOKEN_MODES,
    )
    prefix_cache: str = option(
        "off",
        "Keep the hidden states at the border of the frozen layers on disk and compute them once: 'off', 'auto' (in "
        "the Hugging Face cache folder), or a folder. Dropout in the frozen layers is off then.",
    )
    prefix_cache_max_bytes: int = option(
        20_000_000_000, "Bytes that the cache's folder may take; examples beyond that are computed in each pass."
    )
    prefix_cache_dtype: str = option(
        "float16", "Type of the stored states: float16 (checked for range), bfloat16, or float32 (exact).", DTYPES
    )
    prefix_cache_drop_weights: bool = option(
        False, "Take the frozen layers' weights out of memory while their states are read from disk."
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # the next class in line is TrainingArguments
        self.build_strategy()

    def build_strategy(self, strategy: StrategyLike | None = None) -> Strategy:
        """The strategy these arguments describe.

        Args:
            strategy: used in place of the `strategy` field where given. A `Strategy` is complete and comes back as it
                is. A name takes its LoRA settings from the fields. In a dict or a file each stratum keeps the LoRA
                settings it states and takes the others from the fields.

        Raises:
            ValueError: as the class; a search sets fields without `__post_init__`, so they are checked again here.
        """
        self._check_fields()
        value = self.strategy if strategy is None else strategy
        settings = {name: getattr(self, "lora_r" if name == "r" else name) for name in LORA_SETTINGS}
        built = Strategy.coerce(value, **settings)
        if isinstance(value, Strategy) or self.n1 == NOT_SET:
            return built
        if not isinstance(value, str) or value.strip().startswith("{") or value.lower().endswith(SUFFIXES):
            raise ValueError(
                f"n1 = {self.n1} and n2 = {self.n2} go with the name of a strategy, and {value!r} states its strata; "
                "drop n1 and n2, or take strategy='spafit-4-9-II'."
            )
        return built.with_bounds(self.n1, self.n2).with_lora(**settings)

    def _check_fields(self) -> None:
        for name, other in (("n1", "n2"), ("n2", "n1")):
            value = getattr(self, name)
            if value < NOT_SET:
                raise ValueError(f"{name} is {value}; layers count from zero, and -1 leaves it unset.")
            if value == NOT_SET != getattr(self, other):
                raise ValueError(
                    f"{other} is {getattr(self, other)} and {name} is not set; give both, as in --n1 2 --n2 5."
                )
        rates = {name: getattr(self, name) for name in ("bias_learning_rate", "head_learning_rate")}
        rate_text = "it must be zero or more, as in --{} 1e-3, or -1 for the same as --learning_rate"
        bytes_text = "it must be 0 or more, as in --prefix_cache_max_bytes 20000000000"
        choices = {
            "init_lora_weights": INIT_LORA_WEIGHTS,
            "first_token_only": FIRST_TOKEN_MODES,
            "prefix_cache_dtype": DTYPES,
        }
        others = {"init_lora_weights": " (PEFT's others rewrite the base: for them pass a PeftModel to the trainer)"}
        rules: list[tuple[str, bool, str]] = [
            *((name, getattr(self, name) >= 1, "it must be at least 1") for name in COUNTS),
            (
                "num_train_epochs",
                self.num_train_epochs >= 0 or self.max_steps > 0,  # type: ignore[attr-defined]
                "it must be 0 or more",
            ),
            ("lora_r", self.lora_r >= 1, "the rank of LoRA must be at least 1, as in --lora_r 64"),
            ("lora_alpha", 0 < self.lora_alpha < inf, "it must be a positive number, as in --lora_alpha 128"),
            (
                "lora_dropout",
                0 <= self.lora_dropout < 1,
                "it must be a probability from 0 to below 1, as in --lora_dropout 0.1",
            ),
            *(
                (name, getattr(self, name) in allowed, f"allowed are {listed(allowed)}{others.get(name, '')}")
                for name, allowed in choices.items()
            ),
            (
                "prefix_cache",
                str(self.prefix_cache).lower() not in NO_FOLDERS or self.prefix_cache in PREFIX_CACHE_MODES,
                "allowed are off, auto, or a folder",
            ),
            ("prefix_cache_max_bytes", self.prefix_cache_max_bytes >= 0, bytes_text),
            *((name, rate == NOT_SET or 0 <= rate < inf, rate_text.format(name)) for name, rate in rates.items()),
        ]
        for name, holds, text in rules:
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}; {text}.")


@dataclass
class SpafitTrainingArguments(StrataArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the fields of `StrataArguments`.

    One default of transformers changes: `train_sampling_strategy` is "group_by_length", so that little time goes into
    padding; `SpafitTrainer` falls back to "random" where examples have no length.
    """


@dataclass
class SpafitSeq2SeqTrainingArguments(StrataArguments, Seq2SeqTrainingArguments):
    """`transformers.Seq2SeqTrainingArguments` with the fields of `StrataArguments`; see `SpafitTrainingArguments`."""
