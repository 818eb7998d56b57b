"""The configuration of one adapter: which modules get LoRA, which a bias delta, which a bottleneck adapter.

It is PEFT's `LoraConfig` with some fields more. Everything PEFT knows about LoRA (rank and alpha patterns, DoRA,
rsLoRA, initialization, dropout) keeps its name and its meaning; `bias_modules` says where a bias delta goes.

    strategy --(a model's plan)--> target_modules, rank_pattern, ...   LoRA
                                   target_parameters                   LoRA on experts
                                   bias_modules                        deltas
                                   bottlenecks                         bottleneck adapters
                                   modules_to_save                     the task head
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from spafit_hf.planner import Plan
from spafit_hf.strategy import LORA_SETTINGS, Bottleneck, LoraSettings, Strategy
from spafit_hf.words import listed


class SpafitPeftType(str, Enum):
    """The name under which PEFT finds the method.

    An enum of our own: PEFT's `PeftType` is closed, and a plain string lacks the `.value` that
    transformers' adapter loader asks for (transformers 5.23, integrations/peft.py).
    """

    SPAFIT = "SPAFIT"


#: What a module may set for itself, beside the rank and alpha that PEFT's own patterns hold.
MODULE_SETTINGS = tuple(name for name in LORA_SETTINGS if name not in ("r", "lora_alpha"))

OWN_SETTINGS = (*MODULE_SETTINGS, "init_lora_weights")

#: Settings that the strata of a strategy hold, with their values where there is no strategy: PEFT's own.
LORA_DEFAULTS = asdict(LoraSettings(r=8, lora_alpha=8))

#: Beginnings of the values of `init_lora_weights` for which PEFT moves a part of the base's weights into LoRA.
REWRITING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")

#: Names of heads that PEFT itself adds to `modules_to_save`, whether the model has them or not.
PEFT_HEADS = ("classifier", "score", "qa_outputs")

# Settings that say which modules train, as a strategy does.
_TARGETS = (
    "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern", "bottlenecks",
)  # fmt: skip
# PEFT's settings that an adapter in strata may have. Each other one trains the base's own tensors, or what no folder
# of this package's holds, as those of releases to come may.
_TAKEN = frozenset((
    *LORA_DEFAULTS, *_TARGETS, "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "fan_in_fan_out", "modules_to_save", "init_lora_weights", "eva_config",
    "runtime_config",
))  # fmt: skip


def _none_or(name: str) -> Any:
    """A field of `LoraConfig` with the default None. Its metadata stays: PEFT finds the variants of LoRA by it."""
    return field(default=None, metadata=LoraConfig.__dataclass_fields__[name].metadata)


def rewrites_base(config: LoraConfig) -> bool:
    """Whether initializing LoRA changes the base's weights, as PiSSA does."""
    return isinstance(config.init_lora_weights, str) and config.init_lora_weights.startswith(REWRITING_INITS)


@dataclass
class SpafitConfig(LoraConfig):
    """A PEFT configuration for strata: LoRA on some modules, a bias delta on others, on any layers.

    Give either `strategy`, and the modules are found when the adapter meets its model, or name the modules
    yourself. Without a strategy and without `bias_modules` this is `LoraConfig`, name for name.

    Args:
        strategy: name, dict or `Strategy` whose plan fills the module fields below; stored as a dict. LoRA settings
            given beside it (`r`, `lora_alpha` ...) replace those of its strata.
        bias_modules: modules that get a bias delta, named as in `target_modules`: a list of names or name endings,
            or one regular expression. Linear, Conv1D and LayerNorm modules can have one.
        module_settings: LoRA settings of single modules that differ from this configuration's: name -> settings out
            of `lora_dropout`, `use_rslora`, `use_dora`, `init_lora_weights` (rank and alpha have PEFT's
            `rank_pattern`, `alpha_pattern`).
        bottlenecks: full name of a module -> the bottleneck adapter that is added to its output, in the fields of
            `spafit_hf.strategy.Bottleneck`. Linear and Conv1D modules can have one.
        labels: what the head's outputs mean: `num_labels`, `id2label` and `problem_type` as in a transformers
            configuration. The base model's configuration carries them while the adapter is active.
        others: those of `peft.LoraConfig`. A norm named in `target_modules` gets a delta, since it has no matrix.
            With strata or deltas, `init_lora_weights` may be none of those that move a part of the base's weights
            into LoRA (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ): `SpafitModel` refuses them.

    Raises:
        ValueError: for settings that no module can have or that contradict `strategy`, and for whatever `LoraConfig`
            refuses.
    """

    # None means "not given"; `__post_init__` fills in what holds then.
    r: int = _none_or("r")
    lora_alpha: float = _none_or("lora_alpha")  # type: ignore[assignment]  # PEFT says int and takes floats
    lora_dropout: float = _none_or("lora_dropout")
    use_rslora: bool = _none_or("use_rslora")
    use_dora: bool = _none_or("use_dora")

    strategy: Any = field(
        default=None, metadata={"help": "Name, dict or file of the strategy whose plan fills the module fields."}
    )
    bias_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, name endings or a regular expression of modules with a bias delta."}
    )
    bottlenecks: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={
            "help": "Bottleneck adapters: full name of a module -> kind, reduction, activation, scaling, reads."
        },
    )
    module_settings: dict[str, dict[str, Any]] = field(
        default_factory=dict,
        metadata={"help": "LoRA settings of single modules: name -> lora_dropout, use_rslora, use_dora."},
    )

    labels: dict[str, Any] | None = field(
        default=None, metadata={"help": "num_labels, id2label and problem_type of the head."}
    )

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in LORA_DEFAULTS if getattr(self, name) is not None}
        for name, value in (LORA_DEFAULTS | given).items():
            setattr(self, name, value)
        super().__post_init__()
        if self.strategy is not None and self.bias_modules is None:
            for name in _TARGETS:
                if getattr(self, name):
                    raise ValueError(
                        f"strategy and {name} were both given, and both say which modules train; drop {name} and "
                        "write strata (Strategy(strata=...)), or drop strategy and give bias_modules beside "
                        "target_modules."
                    )
            self.strategy = Strategy.coerce(self.strategy).with_lora(**given)
        self.peft_type = SpafitPeftType.SPAFIT
        if isinstance(self.bias_modules, (list, tuple, set)):
            self.bias_modules = sorted(self.bias_modules)
        self.bottlenecks = {module: Bottleneck(**own).to_dict() for module, own in self.bottlenecks.items()}
        for module, settings in self.module_settings.items():
            unknown = sorted(set(settings) - set(OWN_SETTINGS))
            if unknown:
                raise ValueError(
                    f"module_settings[{module!r}] sets {unknown}; allowed are {list(OWN_SETTINGS)}. "
                    "Rank and alpha of a module belong in rank_pattern and alpha_pattern."
                )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, sets sorted so that equal configurations write equal bytes."""
        data = super().to_dict()
        if isinstance(self.strategy, Strategy):
            data["strategy"] = self.strategy.to_dict()
        if not self.bottlenecks:  # files without them are as they were before there were any
            del data["bottlenecks"]
        return {key: sorted(value) if isinstance(value, set) else value for key, value in data.items()}

    @property
    def is_planned(self) -> bool:
        """Whether the modules are known: named by the caller or filled from a plan."""
        return self.strategy is None or self.bias_modules is not None

    @classmethod
    def from_plan(cls, plan: Plan, **lora_kwargs: Any) -> SpafitConfig:
        """The configuration that carries out a plan of the model that the adapter is for.

        Args:
            plan: decides modules, ranks and the like.
            **lora_kwargs: further fields of `LoraConfig`, such as `init_lora_weights` or `task_type`.

        Raises:
            ValueError: for full fine-tuning, which has no adapter, and for fields that the plan decides.
        """
        decided = sorted({*LORA_DEFAULTS, "bias_modules", "module_settings"} & set(lora_kwargs))
        if decided:
            raise ValueError(
                f"{decided[0]} follows from the plan; make a plan that has it, such as "
                "plan(model, Strategy.from_name('spafit-4-9-II', r=8))."
            )
        if plan.full:
            raise ValueError(
                "full fine-tuning trains the base itself and has no adapter: train the plain model "
                "(SpafitTrainer does so for strategy='full'), or choose one of the other methods."
            )
        config = cls(strategy=plan.strategy, **lora_kwargs)
        config.strategy = plan.strategy.to_dict()
        config.fill(plan.lora, plan.biases, plan.head, plan.bottlenecks, plan.experts)
        config.start_as_planned(plan)
        return config

    def start_as_planned(self, plan: Plan) -> None:
        """Write how LoRA starts in the strata that say so into this configuration, which `fill` has filled."""
        for group in plan.groups:
            start = group.stratum.init_lora_weights if group.stratum is not None else ""
            for module in (*group.lora_modules, *group.experts) if start else ():
                own = self.module_settings.setdefault(module, {})
                own["init_lora_weights"] = True if start == "default" else start

    def fill(
        self,
        lora: Mapping[str, LoraSettings],
        biases: Iterable[str],
        head: Collection[str],
        bottlenecks: Mapping[str, Bottleneck],
        experts: Mapping[str, LoraSettings],
    ) -> None:
        """Write modules, by full names, into this configuration: the commonest settings as its own, others apart.

        Those of experts come first: PEFT puts no dropout and no DoRA on them, which others may have.

        Raises:
            ValueError: for settings of PEFT's that write to the base, or that no reader of an adapter folder takes.
        """
        if {*(self.modules_to_save or ())} - {*head, *PEFT_HEADS}:
            raise ValueError(
                f"modules_to_save is {self.modules_to_save!r:.80}, and what trains whole beside a strategy is the "
                f"task head and what is new with it, here {listed(head) or 'nothing'}; leave it out, or take PEFT's "
                "LoraConfig and pass the PeftModel to the trainer."
            )
        default = LoraConfig()
        odd = [
            name
            for name in sorted(LoraConfig.__dataclass_fields__.keys() - _TAKEN)
            if getattr(self, name) not in (getattr(default, name), None, False, [], {})
        ]
        if odd:
            raise ValueError(
                f"{odd[0]} is {getattr(self, odd[0])!r:.80}, and an adapter in strata with it could not be read back; "
                "leave it out"
                + ("; biases train where a stratum names them (biases=...)." if "bias" in odd[0] else ".")
            )
        self.bias_modules = sorted(biases)
        self.target_modules = set(lora)
        self.target_parameters = sorted(experts) or None
        self.bottlenecks = {module: settings.to_dict() for module, settings in sorted(bottlenecks.items())}
        if not lora and not self.bias_modules and not self.bottlenecks and not experts:
            self.target_modules = DUMMY_TARGET_MODULES  # PEFT's word for an adapter of a head alone
        self.modules_to_save = list(dict.fromkeys([*(self.modules_to_save or []), *head])) or None
        if not lora and not experts:
            return
        common = Counter((experts or lora).values()).most_common(1)[0][0]
        for key, value in asdict(common).items():
            setattr(self, key, value)
        for module, settings in (*lora.items(), *experts.items()):
            if settings.r != common.r:
                self.rank_pattern[module] = settings.r
            if settings.lora_alpha != common.lora_alpha:
                self.alpha_pattern[module] = settings.lora_alpha
            if any(getattr(settings, key) != getattr(common, key) for key in MODULE_SETTINGS):
                self.module_settings[module] = {key: getattr(settings, key) for key in MODULE_SETTINGS}
