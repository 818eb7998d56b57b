"""Checkpoints as a killed run or a failing disk leaves them: which are whole, and whether one fits the model.

Trainer writes a checkpoint file by file, `trainer_state.json` last. A folder without it is the work of a run that was
killed while saving; `get_last_checkpoint` of transformers takes it all the same. What Trainer does not find of the
optimizer or the random state it starts anew, in silence and with other numbers.
"""

from __future__ import annotations

import json
import logging
import math
import zipfile
from pathlib import Path
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from spafit_hf.adapter.verify import lora_settings
from spafit_hf.names import CONFIG_FILE, WEIGHTS_FILE
from spafit_hf.trainer.gradients import KIND_WORDS
from spafit_hf.trainer.wrapping import has_adapter, is_ours

logger = logging.getLogger(__name__)

#: Beginnings of the names of what goes together in a checkpoint that is not of weights alone (`save_only_model`).
TOGETHER = ("optimizer", "scheduler", "rng_state")
#: Those of folders in which DeepSpeed and FSDP keep what they shard, in files of their own.
SHARDED = ("global_step", "optimizer_", "pytorch_model_fsdp")
#: Names under which Trainer finds the weights of a whole model.
WHOLE = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


def damage_of(checkpoint: Path) -> str:
    """What of a checkpoint folder is missing or broken, as a clause; "" where it is whole."""
    names = {path.name for path in checkpoint.iterdir()} if checkpoint.is_dir() else set()
    if TRAINER_STATE_NAME not in names:
        return f"there is no readable {TRAINER_STATE_NAME}"
    if not any(name.startswith(SHARDED) for name in names):
        found = [start for start in TOGETHER if any(name.startswith(start) for name in names)]
        if found and len(found) < len(TOGETHER):
            return f"its {next(start for start in TOGETHER if start not in found)} is missing"
        weights = names - {"training_args.bin"} | _adapters_in(checkpoint)
        if not any(name.endswith((".safetensors", ".bin")) for name in weights):
            return "its weights are missing"
    return next(filter(None, (_flaw(checkpoint / name) for name in sorted(names))), "")


def _adapters_in(checkpoint: Path) -> set[str]:
    """Names of files of adapters; PEFT puts one with a name of its own into a folder of that name."""
    return {path.name for place in ("", "*/") for path in checkpoint.glob(f"{place}adapter_model.*")}


def _flaw(file: Path) -> str:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(file) as parts:  # what torch.save writes, each part with its checksum
                return "" if parts.testzip() is None else f"{file.name} is broken"
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point() and tensor.numel() and tensor.aminmax().min.isnan():
                        return f"{file.name} holds NaN"
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):
        return f"there is no readable {file.name}"
    return ""


def checkpoints_of(folder: str | Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the latest first."""
    return [Path(path) for path in reversed(sort_checkpoints(str(folder)))]


def resumable(checkpoint: str | bool | None, output_dir: str) -> str | bool | None:
    """What to resume from, as `Trainer.train` takes it, a checkpoint that was cut short replaced by one before it.

    "True" and "False" are what they say, in any case: a command line has words alone. None where the run was killed
    during its first save, so that it starts again; `checkpoint` itself where there is nothing to correct.

    Raises:
        ValueError: where there is none, and for a damaged folder that is none of a run's numbered checkpoints.
    """
    checkpoint = {"true": True, "false": False}.get(str(checkpoint).lower(), checkpoint)
    if not checkpoint:
        return None
    wanted = next(iter(checkpoints_of(output_dir)), None) if checkpoint is True else Path(str(checkpoint))
    if wanted is None:
        raise ValueError(
            f"{output_dir} holds no checkpoint to resume from; start without resume_from_checkpoint, or name the "
            "folder of one."
        )
    why = damage_of(wanted) if wanted.is_dir() else ""
    if not why:
        return checkpoint
    siblings = checkpoints_of(wanted.parent)
    if wanted not in siblings:
        raise ValueError(f"{wanted} is no whole checkpoint: {why}; resume from another one.")
    before = next((path for path in siblings[siblings.index(wanted) + 1 :] if not damage_of(path)), None)
    logger.warning(
        "%s was cut short or damaged (%s); %s.",
        wanted,
        why,
        f"resuming from {before} instead" if before else "there is no other, so training starts from the beginning",
    )
    return None if before is None else str(before)


ANEW = "resume with the arguments it was written with, or start anew in another output_dir."


def check_fits(model: nn.Module, checkpoint: str, *, sharded: bool) -> None:
    """Refuse a checkpoint of another strategy; Trainer and PEFT would load what happens to match and leave the rest.

    Args:
        model: what is to go on from the checkpoint.
        checkpoint: its folder.
        sharded: whether FSDP or DeepSpeed holds the model's tensors, so that their shapes are not looked at.

    Raises:
        ValueError: for full fine-tuning in place of an adapter and the other way round, for tensors that are missing,
            superfluous or of another shape, and for LoRA and bottlenecks of other settings.
    """
    model, folder = extract_model_from_parallel(model, keep_torch_compile=False), Path(checkpoint)
    _check_kind(has_adapter(model), folder)
    if not isinstance(model, PeftModel):
        return
    if is_ours(model) and not sharded:
        _check_tensors(model, folder)
    if isinstance(model.peft_config[model.active_adapter], LoraConfig):
        _check_settings(model, folder)


def _check_kind(trains_adapter: bool, folder: Path) -> None:
    adapter, whole = bool(_adapters_in(folder)), any((folder / name).is_file() for name in WHOLE)
    if adapter != whole and adapter != trains_adapter:  # neither is there where all weights are in shards
        found, wanted = ("an adapter", "the whole model")[:: 1 if adapter else -1]
        raise ValueError(f"{folder} is a checkpoint of {found}, and this run trains {wanted}; {ANEW}")


def _check_settings(model: PeftModel, folder: Path) -> None:
    """The same tensors mean the same only with the same scaling, and bottlenecks of the same kind."""
    name = model.active_adapter
    file = next((file for file in (folder / CONFIG_FILE, folder / name / CONFIG_FILE) if file.is_file()), None)
    there = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    if there.get("peft_type") not in ("LORA", "SPAFIT"):
        return
    here = model.peft_config[name].to_dict()
    layers = dict(model.get_base_model().named_modules())
    # LoRA of experts is known by their parameters' names, of which a wrapper has none.
    lora = [key for key, layer in layers.items() if isinstance(layer, LoraLayer) and name in layer.scaling]
    modules = [key for key in lora if not isinstance(layers[key], ParamWrapper)] + (here["target_parameters"] or [])
    read = [lora_settings(config) for config in (there, here)]
    for module in modules:
        found, own = (settings(module).scaling for settings in read)
        if not math.isclose(found, own):
            raise ValueError(
                f"{folder} does not fit the strategy of this run: LoRA of {module} is scaled by {found:g} in the "
                f"checkpoint and by {own:g} in the model (lora_alpha, use_rslora); {ANEW}"
            )
    bottlenecks = there.get("bottlenecks") or {}
    for module, settings in (here.get("bottlenecks") or {}).items():
        if bottlenecks.get(module) != settings:
            raise ValueError(
                f"{folder} does not fit the strategy of this run: the bottleneck of {module} is "
                f"{bottlenecks.get(module)} in the checkpoint and {settings} in the model; {ANEW}"
            )


def _check_tensors(model: PeftModel, folder: Path) -> None:
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    state: dict[str, Any] = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # Resized embeddings are in the file as well, and are not part of the adapter.
    adapter = {name for name in found if ".lora_" in name} | set(expected)
    odd = sorted(name for name in adapter if found.get(name) != expected.get(name))
    if not odd:
        return
    raise ValueError(
        f"{folder} does not fit the strategy of this run: {len(odd)} tensors differ, such as {odd[0]} "
        f"({found.get(odd[0], 'not there')} in the checkpoint, {expected.get(odd[0], 'not there')} in the model); "
        f"{ANEW}"
    )


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """Of each group of an optimizer its own settings and, under "lr", the rate that its schedule starts from."""
    return [
        {name: group[name] for name in optimizer.defaults if name in group}
        | {"lr": group.get("initial_lr"), "kind": KIND_WORDS.get(group.get("kind"), "all")}
        for group in optimizer.param_groups
    ]


def check_optimizer(optimizer: Any, asked: list[dict[str, Any]], checkpoint: str) -> None:
    """Refuse an optimizer into which the state of another one was loaded: its first step would miss a setting. Say
    which numbers of the checkpoint hold, and not those of the arguments.

    Args:
        optimizer: with the checkpoint's state.
        asked: its `settings_of` before that.
        checkpoint: its folder.

    Raises:
        ValueError: naming a setting that is lost.
    """
    others: dict[str, None] = {}
    for before, now in zip(asked, settings_of(optimizer), strict=True):
        if lost := sorted(before.keys() - now.keys()):
            raise ValueError(
                f"{checkpoint} holds the state of another optimizer, which has no {lost[0]!r}; resume with that "
                "optimizer (optim), or start anew in another output_dir."
            )
        for name, value in before.items():
            if isinstance(value, (int, float, tuple)) and now[name] not in (value, None):
                others[f"{name} {now[name]} of {before['kind']}, not {value}"] = None
    if others:
        logger.warning("The optimizer goes on with the settings of %s: %s.", checkpoint, "; ".join(others))
