"""Turn an adapter folder into another kind of folder: a plain model, or the same adapter in another form."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from spafit_hf.adapter.folder import AdapterError
from spafit_hf.adapter.load import load_adapter, local_folder
from spafit_hf.adapter.verify import look_at
from spafit_hf.adapter.write import save_adapter, writing
from spafit_hf.architecture.new import copy_marks
from spafit_hf.files import size_of
from spafit_hf.hub.files import PROCESSOR_FILES
from spafit_hf.names import resolve_base


def merge_adapter(
    base: nn.Module | str | os.PathLike[str] | None, folder: str | os.PathLike[str], output: str | os.PathLike[str]
) -> PreTrainedModel:
    """Write a plain transformers folder: base, adapter and head in one, which loads without PEFT; the merged model.

    The head has the adapter's number of outputs and label names, and a tokenizer in the adapter's folder or the base's
    goes along, so that `pipeline(output)` works.

    Args:
        base: a model, a Hub id or folder, or None for the base that the adapter names.
        folder: the adapter's folder or repository.
        output: the folder to write. It must not exist or be empty.

    Raises:
        AdapterError: if the adapter cannot be loaded, or the output folder is not empty.
        ValueError: if a delta meets a module without a bias, which a saved model could not hold.
    """
    target = _empty(output, base)
    place = local_folder(folder)
    used = base
    if isinstance(base, nn.Module):  # it stays as it is
        used = copy.deepcopy(base)
        copy_marks(base, used)
    model = load_adapter(used, place)
    name_or_path = model.peft_config["default"].base_model_name_or_path
    merged: Any = model.merge_and_unload(safe_merge=True)
    merged.config._name_or_path = name_or_path or ""
    tokenizer = _tokenizer(folder, base, name_or_path)
    with writing(target):
        merged.save_pretrained(target)
        _copy(tokenizer, target)
    return merged


def export_adapter(
    base: nn.Module | str | os.PathLike[str] | None,
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    form: str,
) -> str:
    """Write the same adapter in another form: "peft" (plain PEFT reads it) or "native" (the deltas as they are).

    Arguments as in `merge_adapter`, what is returned and raised as in `save_adapter`.
    """
    target = _empty(output, base)
    place = local_folder(folder)
    model = load_adapter(base, place)
    try:
        tokenizer = _tokenizer(folder, base, model.peft_config["default"].base_model_name_or_path)
        written = save_adapter(model, target, form=form, task=look_at(place).task)
    finally:
        model.unload()  # a model that was given is plain again
    with writing(target):
        _copy(tokenizer, target)
    return written


def _empty(output: str | os.PathLike[str], base: object) -> Path:
    if isinstance(base, PeftModel):
        raise AdapterError("the base has adapters already; give the plain model, or the id or folder to load it from.")
    target = Path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AdapterError(f"{target} exists and is not an empty folder; choose another output, or empty it first.")
    return target


def _tokenizer(folder: str | os.PathLike[str], base: Any, named: str | None) -> list[Path]:
    """The files of the tokenizer in a folder here, else of the base given or `named`."""
    if base is None or isinstance(base, nn.Module):
        base = named
    for source in (Path(folder), *([] if base is None else [Path(resolve_base(base))])):
        if size_of(source / "tokenizer_config.json", AdapterError) is not None:
            found = (source / name for name in PROCESSOR_FILES)
            return [file for file in found if size_of(file, AdapterError) is not None]
    return []


def _copy(files: list[Path], target: Path) -> None:
    """They are copied and not run."""
    for file in files:
        shutil.copyfile(file, target / file.name)
