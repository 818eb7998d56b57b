"""The configuration of one adapter: which modules get LoRA, which get a bias delta.

It is PEFT's `LoraConfig` with three fields more. Everything PEFT knows about LoRA (rank and alpha patterns, DoRA,
rsLoRA, initialization, dropout) keeps its name and its meaning; `bias_modules` says where a bias delta goes.

    strategy --(a model's plan)--> target_modules, rank_pattern, ...   LoRA
                                   bias_modules                        deltas
                                   modules_to_save                     the task head
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from spafit_hf.planner import LoraSettings, Plan


class SpafitPeftType(str, Enum):
    """The name under which PEFT finds the method.

    An enum of our own: PEFT's `PeftType` is closed, and a plain string lacks the `.value` that
    transformers' adapter loader asks for (transformers 5.23, integrations/peft.py).
    """

    SPAFIT = "SPAFIT"


#: What a module may set for itself, beside the rank and alpha that PEFT's own patterns hold.
MODULE_SETTINGS = ("lora_dropout", "use_rslora", "use_dora")


@dataclass
class SpafitConfig(LoraConfig):
    """A PEFT configuration for strata: LoRA on some modules, a bias delta on others, on any layers.

    Give either `strategy`, and the modules are found when the adapter meets its model, or name the modules
    yourself. Without a strategy and without `bias_modules` this is `LoraConfig`, name for name.

    Args:
        strategy: name, dict or `Strategy` whose plan fills the module fields below; stored as a dict.
        bias_modules: modules that get a bias delta, named as in `target_modules`: a list of names or name endings,
            or one regular expression. Linear, Conv1D and LayerNorm modules can have one.
        module_settings: LoRA settings of single modules that differ from this configuration's: name -> settings out
            of `lora_dropout`, `use_rslora`, `use_dora` (rank and alpha have PEFT's `rank_pattern`, `alpha_pattern`).
        labels: what the head's outputs mean: `num_labels`, `id2label` and `problem_type` as in a transformers
            configuration. The base model's configuration carries them while the adapter is active.
        others: those of `peft.LoraConfig`. A norm named in `target_modules` gets a delta, since it has no matrix.

    Raises:
        ValueError: for settings that no module can have, and for whatever `LoraConfig` refuses.
    """

    strategy: Any = field(
        default=None, metadata={"help": "Name, dict or file of the strategy whose plan fills the module fields."}
    )
    bias_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, name endings or a regular expression of modules with a bias delta."}
    )
    module_settings: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={"help": "LoRA settings of single modules: name -> lora_dropout, use_rslora, use_dora."},
    )

    labels: dict[str, Any] | None = field(
        default=None, metadata={"help": "num_labels, id2label and problem_type of the head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SpafitPeftType.SPAFIT
        if isinstance(self.bias_modules, (list, tuple, set)):
            self.bias_modules = sorted(self.bias_modules)
        for module, settings in self.module_settings.items():
            unknown = sorted(set(settings) - set(MODULE_SETTINGS))
            if unknown:
                raise ValueError(
                    f"module_settings[{module!r}] sets {unknown}; allowed are {list(MODULE_SETTINGS)}. "
                    "Rank and alpha of a module belong in rank_pattern and alpha_pattern."
                )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, sets sorted so that equal configurations write equal bytes."""
        data = super().to_dict()
        if data["strategy"] is not None and not isinstance(data["strategy"], (str, dict)):
            data["strategy"] = data["strategy"].to_dict()
        return {key: sorted(value) if isinstance(value, set) else value for key, value in data.items()}

    @property
    def is_planned(self) -> bool:
        """Whether the modules are known: named by the caller or filled from a plan."""
        return self.strategy is None or self.target_modules is not None or self.bias_modules is not None

    @classmethod
    def from_plan(cls, plan: Plan, **lora_kwargs: Any) -> SpafitConfig:
        """The configuration that carries out a plan.

        Args:
            plan: a plan of the model that the adapter is for.
            **lora_kwargs: further fields of `LoraConfig`, such as `init_lora_weights` or `task_type`.

        Raises:
            ValueError: for full fine-tuning, which has no adapter.
        """
        if plan.full:
            raise ValueError(
                "full fine-tuning trains the base itself and has no adapter: train the plain model "
                "(SpafitTrainer does so for strategy='full'), or choose one of the other methods."
            )
        config = cls(strategy=plan.strategy.to_dict(), **lora_kwargs)
        config.fill(plan.lora, plan.biases, plan.head)
        return config

    def fill(self, lora: Mapping[str, LoraSettings], biases: Iterable[str], head: Iterable[str]) -> None:
        """Write modules into this configuration. The most frequent settings become its own, others patterns.

        Args:
            lora: full module name -> its LoRA settings.
            biases: full names of the modules with a bias delta.
            head: names of the modules of the task head.
        """
        self.bias_modules = sorted(biases)
        self.target_modules = set(lora)
        if not lora and not self.bias_modules:
            self.target_modules = DUMMY_TARGET_MODULES  # PEFT's word for an adapter of a head alone
        self.modules_to_save = list(dict.fromkeys([*(self.modules_to_save or []), *head])) or None
        if not lora:
            return
        common = Counter(lora.values()).most_common(1)[0][0]
        self.r, self.lora_alpha = common.r, common.lora_alpha
        for key in MODULE_SETTINGS:
            setattr(self, key, getattr(common, key))
        for module, settings in lora.items():
            if settings.r != common.r:
                self.rank_pattern[module] = settings.r
            if settings.lora_alpha != common.lora_alpha:
                self.alpha_pattern[module] = settings.lora_alpha
            own = {key: getattr(settings, key) for key in MODULE_SETTINGS}
            if own != {key: getattr(common, key) for key in MODULE_SETTINGS}:
                self.module_settings[module] = own
