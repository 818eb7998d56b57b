"""Checkpoints as a killed run or a failing disk leaves them: which are whole, and whether one fits the model.

Trainer writes a checkpoint file by file, `trainer_state.json` last. A folder without it is the work of a run that was
killed while saving; `get_last_checkpoint` of transformers takes it all the same. What Trainer does not find of the
optimizer or the random state it starts anew, in silence and with other numbers.
"""

from __future__ import annotations

import json
import logging
import zipfile
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from spafit_hf.names import WEIGHTS_FILE

logger = logging.getLogger(__name__)

#: Beginnings of the names of what goes together in a checkpoint that is not of weights alone (`save_only_model`).
TOGETHER = ("optimizer", "scheduler", "rng_state")
#: Those of folders in which DeepSpeed and FSDP keep what they shard, in files of their own.
SHARDED = ("global_step", "optimizer_", "pytorch_model_fsdp")


def damage_of(checkpoint: Path) -> str:
    """What of a checkpoint folder is missing or broken, as a clause; "" where it is whole."""
    names = {path.name for path in checkpoint.iterdir()} if checkpoint.is_dir() else set()
    if TRAINER_STATE_NAME not in names:
        return f"there is no readable {TRAINER_STATE_NAME}"
    if not any(name.startswith(SHARDED) for name in names):
        found = [start for start in TOGETHER if any(name.startswith(start) for name in names)]
        if found and len(found) < len(TOGETHER):
            return f"its {next(start for start in TOGETHER if start not in found)} is missing"
        if not any(name.endswith((".safetensors", ".bin")) and name != "training_args.bin" for name in names):
            return "its weights are missing"
    return next(filter(None, (_flaw(checkpoint / name) for name in sorted(names))), "")


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

    None where the run was killed during its first save, so that it starts again; `checkpoint` itself where there is
    nothing to correct.

    Raises:
        ValueError: for a damaged folder that is none of a run's numbered checkpoints.
    """
    if not checkpoint:
        return None
    wanted = next(iter(checkpoints_of(output_dir)), None) if checkpoint is True else Path(str(checkpoint))
    why = "" if wanted is None or not wanted.is_dir() else damage_of(wanted)
    if wanted is None or not why:
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


def check_fits(model: PeftModel, adapter_name: str, checkpoint: str) -> None:
    """Refuse a native checkpoint of another strategy; PEFT would load what happens to match and leave the rest.

    Raises:
        ValueError: when tensors are missing, superfluous or of another shape.
    """
    file = Path(checkpoint) / WEIGHTS_FILE
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        found = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    state: dict[str, Any] = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    # Resized embeddings are in the file as well, and are not part of the adapter.
    adapter = {name for name in found if ".lora_" in name} | set(expected)
    odd = sorted(name for name in adapter if found.get(name) != expected.get(name))
    if not odd:
        return
    raise ValueError(
        f"{checkpoint} does not fit the strategy of this run: {len(odd)} tensors differ, such as {odd[0]} "
        f"({found.get(odd[0], 'not there')} in the checkpoint, {expected.get(odd[0], 'not there')} in the model); "
        "resume with the arguments it was written with, or start anew in another output_dir."
    )
