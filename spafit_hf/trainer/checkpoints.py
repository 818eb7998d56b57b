"""Checkpoints as a killed run leaves them: which are whole, and whether one fits the model.

Trainer writes a checkpoint file by file, `trainer_state.json` last. A folder without it is the work of a run that was
killed while saving; `get_last_checkpoint` of transformers takes it all the same.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from spafit_hf.names import WEIGHTS_FILE

logger = logging.getLogger(__name__)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint folder was written to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the latest first."""
    return [Path(path) for path in reversed(sort_checkpoints(str(folder)))]


def resumable(checkpoint: str | bool | None, output_dir: str) -> str | bool | None:
    """What to resume from, as `Trainer.train` takes it, a checkpoint that was cut short replaced by one before it.

    None where the run was killed during its first save, so that it starts again; `checkpoint` itself where there is
    nothing to correct.
    """
    if not checkpoint:
        return None
    wanted = next(iter(checkpoints_of(Path(output_dir))), None) if checkpoint is True else Path(str(checkpoint))
    siblings = [] if wanted is None else checkpoints_of(wanted.parent)
    if wanted is None or wanted not in siblings or is_whole(wanted):
        return checkpoint
    before = next((path for path in siblings[siblings.index(wanted) + 1 :] if is_whole(path)), None)
    logger.warning(
        "%s was cut short while it was written (no readable %s); %s.",
        wanted,
        TRAINER_STATE_NAME,
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
