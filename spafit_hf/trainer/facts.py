"""What a run says about itself, for its card: a trainer in, `CardFacts` out. Nothing is asked of the network.

Only what is measured or set is taken, and of the settings only those that shape the result: no paths, names of
machines or secrets can slip into a card.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import PretrainedConfig, Trainer

from spafit_hf.architecture.experts import by_module
from spafit_hf.card import Base, CardFacts, Cost, Data, Layers, Score, Step, glue_data
from spafit_hf.data.glue import TASKS
from spafit_hf.names import is_remote
from spafit_hf.planner import Plan
from spafit_hf.strategy import EVERY_ROLE, EXPERT_ROLES, Strategy
from spafit_hf.trainer.machine import hardware, versions
from spafit_hf.tuner import SpafitConfig, task_type_of
from spafit_hf.tuner.plain import base_of

#: Arguments that shape the result, in the order of a card.
TELLING = (
    "n1", "n2", "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "init_adapter",
    "learning_rate", "bias_learning_rate", "head_learning_rate", "lr_scheduler_type", "warmup_steps",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "weight_decay", "max_grad_norm", "label_smoothing_factor", "optim", "adam_beta1", "adam_beta2", "adam_epsilon",
    "neftune_noise_alpha", "train_sampling_strategy", "bf16", "fp16", "tf32", "activation_checkpointing",
    "torch_compile", "generation_max_length", "generation_num_beams", "first_token_only", "prefix_cache",
    "prefix_cache_dtype", "load_best_model_at_end", "metric_for_best_model", "seed", "data_seed",
)  # fmt: skip
#: Shown even where they have their default.
ALWAYS = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
#: Of SpafitTrainingArguments: -1 says that a number is left open.
OPEN = ("n1", "n2", "bias_learning_rate", "head_learning_rate", "max_steps")
#: Figures that Trainer logs beside those that were asked for.
NOT_FIGURES = re.compile(
    r"(loss|.*_(ci_low|ci_high|se|time)|runtime|.*_per_second|epoch|.*_mem_.*|jit_compilation.*)$"
)
PACKAGES = ("spafit-hf", "peft", "transformers", "torch", "datasets", "tokenizers")


def facts_of_run(
    trainer: Trainer, plan: Plan | None = None, revision: str | None = None, license: str | None = None
) -> CardFacts:
    """Everything a trainer with a model knows that belongs on a card. May be asked during training, too.

    `plan` is its model's, if it trains in strata; `revision` (a commit) and `license` are those of the base.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    adapter = model.peft_config[model.active_adapter] if isinstance(model, PeftModel) else None
    plain = base_of(model)
    config = plain.config if isinstance(plain.config, PretrainedConfig) else PretrainedConfig()
    name = str(config._name_or_path or "")
    remote = is_remote(name)
    task_type = _value(getattr(adapter, "task_type", None) or task_type_of(plain))
    problem = config.problem_type
    if problem is None and task_type == "SEQ_CLS":
        problem = "regression" if config.num_labels == 1 else "single_label_classification"
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    history = trainer.state.log_history
    seconds = next((entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry), None)
    settings = {"strategy": _method(adapter), **_settings(trainer)}
    default = {item.name: item.default for item in dataclasses.fields(trainer.args)}
    shown = ("strategy", *ALWAYS)
    data = data_of(trainer.train_dataset)
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    return CardFacts(
        method=settings["strategy"],
        kind="model" if adapter is None else "adapter",
        task_type=task_type,
        problem_type=problem,
        labels=_labels(config, task_type, problem),
        has_tokenizer=trainer.processing_class is not None,
        base=Base(
            id=name if remote else None,
            name=None if remote else Path(name).name or None,  # of a local path the last part alone
            revision=revision,
            license=license,
            model_type=config.model_type or None,
            model_class=type(plain).__name__,
        ),
        data=data,
        layers=layers_of_plan(plan) if plan is not None else (),
        outer_biases=plan.strategy.outer_biases if plan is not None else False,
        head=plan.head if plan is not None else tuple(getattr(adapter, "modules_to_save", None) or ()),
        # From the plan where there is one: under ZeRO-3 a process holds no whole parameters to count.
        trained_parameters=(plan.trainable_parameters if plan is not None else sum(trained)) or None,
        total_parameters=plan.total_parameters if plan is not None else sum(p.numel() for p in plain.parameters()),
        full_file_bytes=plan.weight_bytes if plan is not None else None,
        scores=_scores(trainer, best),
        main_figure=_main_figure(trainer, data),
        steps=_steps(history),
        best_step=best,
        hyperparameters={
            key: value for key, value in settings.items() if key in shown or (default.get(key) or False) != value
        },
        all_hyperparameters=settings,
        cost=Cost(
            seconds=seconds,
            hardware=hardware(trainer.args.device) if seconds is not None else None,
            processes=trainer.args.world_size,
        ),
        versions=versions(PACKAGES),
    )


def _value(setting: Any) -> Any:
    """A member of an enum as its name, anything else as it is."""
    return getattr(setting, "value", setting)


def _method(adapter: PeftConfig | None) -> str:
    if adapter is None:
        return "full"
    if isinstance(adapter, SpafitConfig) and adapter.strategy is not None:
        return Strategy.coerce(adapter.strategy).name
    return str(_value(adapter.peft_type)).lower()


def layers_of_plan(plan: Plan) -> tuple[Layers, ...]:
    """What trains in which layers: of each role only what really is there, since a norm may have no bias."""
    stacks = {stack.name: stack for stack in plan.architecture.stacks}
    found = []
    for group in plan.groups:
        if not group.stack or not group.layers:
            continue
        layers = [stacks[group.stack].layers[index] for index in group.layers]
        lora, biases, bottlenecks = (
            tuple(role for role in EVERY_ROLE if any(modules & {*layer.modules.get(role, ())} for layer in layers))
            for modules in map(set, (group.lora_modules, group.bias_modules, group.bottleneck_modules))
        )
        lora += EXPERT_ROLES if group.experts else ()
        owners = {owner for layer in layers for owner in by_module(layer.experts)}
        biases += EXPERT_ROLES if owners.intersection(group.bias_modules) else ()
        found.append(
            Layers(
                name=group.name,
                stack=group.stack,
                layers=tuple(group.layers),
                lora=lora,
                biases=biases,
                bottlenecks=bottlenecks,
                r=group.stratum.r if group.stratum and lora else None,
                lora_alpha=float(group.stratum.lora_alpha) if group.stratum and lora else None,
                trained=group.trainable_parameters,
            )
        )
    return tuple(sorted(found, key=lambda band: (list(stacks).index(band.stack), band.layers)))


def _labels(config: PretrainedConfig, task_type: str | None, problem: str | None) -> tuple[str, ...]:
    sees = any(name.endswith("ForImageClassification") for name in config.architectures or [])
    if problem == "regression" or not (task_type in ("SEQ_CLS", "TOKEN_CLS") or sees):
        return ()
    return tuple(str(name) for _, name in sorted((config.id2label or {}).items()))


def data_of(dataset: Any) -> Data:
    """What a dataset remembers of where it is from; nothing for one that was built by hand or from local files."""
    if not isinstance(dataset, Dataset):
        return Data()
    sources = dataset.info.download_checksums or {}
    found = next((m for source in sources if (m := re.match(r"hf://datasets/([^@]+)@([0-9a-f]{40})/", source))), None)
    if found is None:
        return Data(train_rows=dataset.num_rows)
    config = dataset.info.config_name
    if found[1] == "nyu-mll/glue" and config in TASKS:
        return dataclasses.replace(glue_data(config, revision=found[2]), train_rows=dataset.num_rows)
    return Data(
        id=found[1],
        config=config if config != "default" else None,
        revision=found[2],
        train_split=str(dataset.split) if dataset.split is not None else None,
        train_rows=dataset.num_rows,
    )


def _figures(entry: Mapping[str, Any], start: str = "eval_") -> dict[str, float]:
    """The figures of an evaluation in an entry of Trainer's log, without those that Trainer adds."""
    return {
        name: float(value)
        for key, value in entry.items()
        if key.startswith(start)
        and NOT_FIGURES.match(name := key.removeprefix(start)) is None
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _steps(history: list[dict[str, Any]]) -> tuple[Step, ...]:
    """Trainer's log, one entry per step."""
    merged: dict[int, dict[str, Any]] = {}
    for entry in history:
        if "train_runtime" in entry or "step" not in entry:
            continue
        known = merged.setdefault(int(entry["step"]), {"epoch": entry.get("epoch"), "figures": {}})
        if "loss" in entry:
            known["train_loss"] = entry["loss"]
        if "eval_loss" in entry:
            known.setdefault("eval_loss", entry["eval_loss"])
        for name, value in _figures(entry).items():
            known["figures"].setdefault(name, value)
    return tuple(Step(step=step, **known) for step, known in sorted(merged.items()))


def _scores(trainer: Trainer, best: int | None) -> tuple[Score, ...]:
    """The last figures of each evaluation set; where the best weights were kept, the figures of these."""
    named = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {"": trainer.eval_dataset}
    entries = [entry for entry in trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    entries = [entry for entry in entries if best is not None and entry.get("step") == best] or entries
    scores = []
    for name, dataset in named.items():
        figures: dict[str, float] = {}
        for entry in entries:
            figures |= _figures(entry, f"eval_{name}_" if name else "eval_")
        rows, split = (len(dataset), str(dataset.split or "")) if isinstance(dataset, Dataset) else (None, "")
        is_name = re.fullmatch(r"[\w.-]+", split) is not None and split != "train"
        if figures:
            scores.append(Score(split if is_name else (name or "validation"), figures, rows))
    return tuple(scores)


def _main_figure(trainer: Trainer, data: Data) -> str | None:
    chosen = (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    if chosen and chosen != "loss":
        return chosen
    return TASKS[data.glue].main_metric if data.glue else None


def _settings(trainer: Trainer) -> dict[str, Any]:
    given = vars(trainer.args)
    values = {name: _value(given[name]) for name in TELLING if name in given}
    for name in OPEN:
        if values.get(name) == -1:
            values[name] = None
    if values.get("prefix_cache", "off") == "off":
        values["prefix_cache_dtype"] = None
    else:
        values["prefix_cache"] = "auto"  # in which folder stays here
    start = values.get("init_adapter") or None
    values["init_adapter"] = start if start is None or is_remote(start) else Path(start).resolve().name
    if values.get("max_steps") is not None:
        values["num_train_epochs"] = None  # the steps end the run, not the epochs
    for group in trainer.optimizer.param_groups if trainer.optimizer is not None else ():
        # The trainer may have chosen the head's.
        rate = group.get("initial_lr", trainer.args.learning_rate)
        if group.get("kind") == "head" and rate != trainer.args.learning_rate:
            values["head_learning_rate"] = float(rate)
    return {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool))}
