"""What a run says about itself, for its card: a trainer in, `CardFacts` out. Nothing is asked of the network.

Only what is measured or set is taken, and of the settings only those that shape the result: no paths, names of
machines or secrets can slip into a card.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PretrainedConfig, Trainer

from spafit_hf.card import Base, CardFacts, Cost, Data, Layers, Score, Step, glue_data
from spafit_hf.data.glue import TASKS
from spafit_hf.names import is_hub_id
from spafit_hf.planner import Plan
from spafit_hf.strategy import ROLES, Strategy
from spafit_hf.trainer.machine import hardware, versions
from spafit_hf.tuner import SpafitConfig, task_type_of

#: Arguments that shape the result, in the order of a card.
TELLING = (
    "n1",
    "n2",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "init_adapter",
    "learning_rate",
    "bias_learning_rate",
    "head_learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "neftune_noise_alpha",
    "train_sampling_strategy",
    "bf16",
    "fp16",
    "tf32",
    "activation_checkpointing",
    "torch_compile",
    "first_token_only",
    "prefix_cache",
    "prefix_cache_dtype",
    "load_best_model_at_end",
    "metric_for_best_model",
    "seed",
    "data_seed",
)
#: Shown even where they have their default.
ALWAYS = ("learning_rate", "num_train_epochs", "per_device_train_batch_size")
#: Of SpafitTrainingArguments: -1 says that a number is left open.
OPEN = ("n1", "n2", "bias_learning_rate", "head_learning_rate", "max_steps")
#: Figures that Trainer logs beside those that were asked for.
NOT_FIGURES = re.compile(r"(loss|runtime|.*_per_second|.*_time|epoch|.*_mem_.*|jit_compilation.*)$")
PACKAGES = ("spafit-hf", "peft", "transformers", "torch", "datasets", "tokenizers")


def facts_of_run(
    trainer: Trainer, plan: Plan | None = None, revision: str | None = None, license: str | None = None
) -> CardFacts:
    """Everything a trainer knows that belongs on a card. May be asked during training, too.

    Args:
        trainer: with a model.
        plan: of its model, if it trains in strata.
        revision: commit of the base's repository that was loaded.
        license: of the base.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    config = plain.config if isinstance(plain.config, PretrainedConfig) else PretrainedConfig()
    method = method_of(model)
    task_type = _task_type(model, plain)
    problem = _problem_type(config, task_type)
    steps, seconds = _steps(trainer.state.log_history)
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    settings = {name: value for name, value in _settings(trainer).items() if value is not None}
    default = {item.name: item.default for item in dataclasses.fields(trainer.args)}
    changed = {key: value for key, value in settings.items() if key in ALWAYS or (default.get(key) or False) != value}
    parameters = list(model.parameters())
    head = plan.head if plan is not None else _head(model)
    return CardFacts(
        method=method,
        kind="adapter" if isinstance(model, PeftModel) else "model",
        task_type=task_type,
        problem_type=problem,
        labels=_labels(config, task_type, problem),
        has_tokenizer=trainer.processing_class is not None,
        base=Base(
            **_named(str(config._name_or_path or "")),
            revision=revision,
            license=license,
            model_type=config.model_type or None,
            model_class=type(plain).__name__,
        ),
        data=data_of(trainer.train_dataset),
        layers=layers_of_plan(plan) if plan is not None else (),
        outer_biases=plan.strategy.outer_biases if plan is not None else False,
        head=head,
        # From the plan where there is one: under ZeRO-3 a process holds no whole parameters to count.
        trained_parameters=(
            plan.trainable_parameters if plan else sum(p.numel() for p in parameters if p.requires_grad)
        )
        or None,
        total_parameters=plan.total_parameters if plan is not None else sum(p.numel() for p in plain.parameters()),
        full_file_bytes=plan.weight_bytes if plan is not None else None,
        scores=_scores(trainer, best),
        main_figure=_main_figure(trainer),
        steps=steps,
        best_step=best,
        hyperparameters={"strategy": method, **changed},
        all_hyperparameters={"strategy": method, **settings},
        cost=_cost(trainer, seconds),
        versions=versions(PACKAGES),
    )


# -- the model --------------------------------------------------------------------------------------------------------


def method_of(model: nn.Module) -> str:
    """Name of the strategy that a model trains with."""
    if not isinstance(model, PeftModel):
        return "full"
    config = model.peft_config[model.active_adapter]
    if isinstance(config, SpafitConfig) and config.strategy is not None:
        return Strategy.coerce(config.strategy).name
    return str(getattr(config.peft_type, "value", config.peft_type)).lower()


def layers_of_plan(plan: Plan) -> tuple[Layers, ...]:
    """What trains in which layers: of each role only what really is there, since a norm may have no bias."""
    stacks = {stack.name: stack for stack in plan.architecture.stacks}
    found = []
    for group in plan.groups:
        if not group.stack or not group.layers:
            continue
        layers = [stacks[group.stack].layers[index] for index in group.layers]

        def acting(modules: Iterable[str], layers: list[Any] = layers) -> tuple[str, ...]:
            names = set(modules)
            return tuple(role for role in ROLES if any(names & set(layer.modules.get(role, ())) for layer in layers))

        lora = acting(group.lora_modules)
        found.append(
            Layers(
                name=group.name,
                stack=group.stack,
                layers=tuple(group.layers),
                lora=lora,
                biases=acting(group.bias_modules),
                r=group.stratum.r if group.stratum and lora else None,
                lora_alpha=float(group.stratum.lora_alpha) if group.stratum and lora else None,
                trained=group.trainable_parameters,
            )
        )
    return tuple(sorted(found, key=lambda band: (list(stacks).index(band.stack), band.layers)))


def _named(name: str) -> dict[str, str | None]:
    """A base's name: as an id where it is one, and of a local path the last part alone."""
    if is_hub_id(name) and not os.path.exists(name):
        return {"id": name}
    return {"name": Path(name).name or None}


def _task_type(model: nn.Module, plain: nn.Module) -> str | None:
    if isinstance(model, PeftModel):
        given = model.peft_config[model.active_adapter].task_type
        if given is not None:
            return str(getattr(given, "value", given))
    inferred = task_type_of(plain)
    return None if inferred is None else str(getattr(inferred, "value", inferred))


def _problem_type(config: PretrainedConfig, task_type: str | None) -> str | None:
    if config.problem_type is not None or task_type != "SEQ_CLS":
        return config.problem_type
    return "regression" if config.num_labels == 1 else "single_label_classification"


def _labels(config: PretrainedConfig, task_type: str | None, problem: str | None) -> tuple[str, ...]:
    names = config.id2label or {}
    if problem == "regression" or not (task_type in ("SEQ_CLS", "TOKEN_CLS") or _sees(config)):
        return ()
    return tuple(str(name) for _, name in sorted(names.items()))


def _sees(config: PretrainedConfig) -> bool:
    return any(name.endswith("ForImageClassification") for name in config.architectures or [])


def _head(model: nn.Module) -> tuple[str, ...]:
    if not isinstance(model, PeftModel):
        return ()
    return tuple(getattr(model.peft_config[model.active_adapter], "modules_to_save", None) or ())


# -- the data ---------------------------------------------------------------------------------------------------------


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


# -- results ----------------------------------------------------------------------------------------------------------


def _steps(history: list[dict[str, Any]]) -> tuple[tuple[Step, ...], float | None]:
    """Trainer's log, one entry per step, and the seconds of training."""
    merged: dict[int, dict[str, Any]] = {}
    seconds = None
    for entry in history:
        seconds = entry.get("train_runtime", seconds)
        if "train_runtime" in entry or "step" not in entry:
            continue
        known = merged.setdefault(int(entry["step"]), {"figures": {}})
        known.setdefault("epoch", entry.get("epoch"))
        for key, value in entry.items():
            if key == "loss":
                known["train_loss"] = value
            elif key == "eval_loss":
                known.setdefault("eval_loss", value)
            elif key.startswith("eval_") and _is_figure(key, value):
                known["figures"].setdefault(key.removeprefix("eval_"), float(value))
    return tuple(Step(step=step, **known) for step, known in sorted(merged.items())), seconds


def _is_figure(key: str, value: Any) -> bool:
    name = key.removeprefix("eval_")
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return number and NOT_FIGURES.match(name) is None


def _scores(trainer: Trainer, best: int | None) -> tuple[Score, ...]:
    """The last figures of each evaluation set; where the best weights were kept, the figures of these."""
    named = trainer.eval_dataset if isinstance(trainer.eval_dataset, Mapping) else {"": trainer.eval_dataset}
    entries = [entry for entry in trainer.state.log_history if any(key.startswith("eval_") for key in entry)]
    if best is not None and any(entry.get("step") == best for entry in entries):
        entries = [entry for entry in entries if entry.get("step") == best]
    scores = []
    for name, dataset in named.items():
        start = f"eval_{name}_" if name else "eval_"
        figures: dict[str, float] = {}
        for entry in entries:
            mine = {
                key: float(value) for key, value in entry.items() if key.startswith(start) and _is_figure(key, value)
            }
            figures |= {
                key.removeprefix(start): value for key, value in mine.items() if _is_figure(key[len(start) :], value)
            }
        if not figures:
            continue
        split = str(dataset.split) if isinstance(dataset, Dataset) and dataset.split is not None else ""
        plain_name = re.fullmatch(r"[\w.-]+", split) is not None and split != "train"
        rows = len(dataset) if isinstance(dataset, Dataset) else None
        scores.append(Score(split if plain_name else (name or "validation"), figures, rows))
    return tuple(scores)


def _main_figure(trainer: Trainer) -> str | None:
    chosen = (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    if chosen and chosen != "loss":
        return chosen
    data = data_of(trainer.train_dataset)
    return TASKS[data.glue].main_metric if data.glue else None


# -- settings, cost -----------------------------------------------------------------------------------------


def _settings(trainer: Trainer) -> dict[str, Any]:
    args: Any = trainer.args
    values = {
        name: getattr(args, name) for name in TELLING if name in {item.name for item in dataclasses.fields(args)}
    }
    values = {name: getattr(value, "value", value) for name, value in values.items()}  # enums as their names
    values = {name: None if name in OPEN and value == -1 else value for name, value in values.items()}
    if values.get("prefix_cache", "off") == "off":
        values["prefix_cache_dtype"] = None
    else:
        values["prefix_cache"] = "auto"  # in which folder stays here
    start = values.get("init_adapter") or None
    values["init_adapter"] = Path(start).resolve().name if start and os.path.isdir(start) else start
    if values.get("max_steps") is not None:
        values["num_train_epochs"] = None  # the steps end the run, not the epochs
    for group in trainer.optimizer.param_groups if trainer.optimizer is not None else ():
        # The trainer may have chosen the head's.
        if group.get("kind") == "head" and group.get("initial_lr", args.learning_rate) != args.learning_rate:
            values["head_learning_rate"] = float(group["initial_lr"])
    return {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool))}


def _cost(trainer: Trainer, seconds: float | None) -> Cost:
    measured = _emissions(Path(str(trainer.args.output_dir)) / "emissions.csv")
    return Cost(
        seconds=seconds,
        hardware=hardware(trainer.args.device) if seconds is not None else None,
        processes=trainer.args.world_size,
        **measured,
    )


def _emissions(path: Path) -> dict[str, Any]:
    """What codecarbon's callback measured, if it ran: its file's last row, kilograms made grams."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    try:
        grams = 1000 * float(rows[-1]["emissions"])
        energy = float(rows[-1].get("energy_consumed") or "nan")
    except (KeyError, ValueError):
        return {}
    return {
        "emissions_grams": grams,
        "energy_kwh": energy if math.isfinite(energy) else None,
        "emissions_source": "codecarbon",
        "on_cloud": {"Y": True, "N": False}.get(rows[-1].get("on_cloud", "")),
    }
