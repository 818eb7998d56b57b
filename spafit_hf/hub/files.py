"""Which files of a folder leave the machine. Named one by one: whatever is not named stays.

In an output folder of a run lie things that must not be published: `training_args.bin` is a pickle with the Hub's
token in clear, optimizer and random states are pickles too. Of the files that do leave, configurations may name the
base by its path on this machine; `sent` has them without it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from huggingface_hub import get_token

from spafit_hf.card import CARD_FILE, CURVE_FILE, FACTS_FILE, FORGETTING_FILE
from spafit_hf.card.facts import FACTS_BOUNDS
from spafit_hf.files import read_json, size_of
from spafit_hf.hub.errors import HubError
from spafit_hf.names import CONFIG_FILE, SIDECAR_FILE, WEIGHTS_FILE, is_remote

logger = logging.getLogger(__name__)

ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE, SIDECAR_FILE)
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
ABOUT_FILES = (CARD_FILE, FACTS_FILE, CURVE_FILE, FORGETTING_FILE)
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
    "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
#: Files that run code when they are read, or may. They are never pushed, not even when asked for.
UNSAFE = (
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".h5", ".py", ".so", ".zip", ".tar",
    ".gz",
)  # fmt: skip
#: Where a file names the base.
BASE_NAMES = {
    CONFIG_FILE: ("base_model_name_or_path",),
    SIDECAR_FILE: ("base", "name_or_path"),
    "config.json": ("_name_or_path",),
}
#: What a token of the Hub looks like, and letters as JSON, YAML and Python may write them.
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")
ESCAPED = re.compile(rb"\\(?:u00|u\{|x)([0-9A-Fa-f]{2})\}?")
SCANNED_AT_ONCE = 2**22


@dataclass(frozen=True)
class Parcel:
    """The files of a folder that are pushed."""

    folder: Path
    kind: str
    """"adapter" or "model"."""
    names: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in self.names)


def parcel(folder: str | os.PathLike[str], *, also: Sequence[str] = (), tokens: Iterable[str] = ()) -> Parcel:
    """What of a folder is pushed.

    Args:
        folder: of an adapter (configuration and weights) or a model (the same, its weights whole or in shards).
        also: names of further files in it, such as LICENSE.
        tokens: secrets that no file may hold, beside the stored token.

    Raises:
        HubError: for a folder of neither, and for what may run code, holds a token, or is no file of the folder.
    """
    place = Path(folder)
    there = {path.name for path in place.iterdir() if not path.is_dir()} if place.is_dir() else set()
    if {CONFIG_FILE, WEIGHTS_FILE} <= there:
        kind, core = "adapter", [name for name in ADAPTER_FILES if name in there]
    elif "config.json" in there and (weights := [n for n in there if n == "model.safetensors" or SHARD.fullmatch(n)]):
        kind, core = "model", sorted({*weights, *(name for name in MODEL_FILES if name in there)})
    else:
        pickles = sorted(name for name in there if name.endswith((".bin", ".pt", ".pth")))
        hint = f" {pickles[0]} is a pickle: save it as safetensors." if pickles else ""
        raise HubError(
            f"{place} is no folder of an adapter ({CONFIG_FILE} and {WEIGHTS_FILE}) or a model (config.json and "
            f"model.safetensors).{hint}"
        )
    for name in also:
        if "/" in name or "\\" in name or name.startswith(".") or name not in there:
            raise HubError(f"{name!r} is no file in {place}; name files that lie in the folder itself.")
        if name.lower().endswith(UNSAFE):
            raise HubError(f"{name} may run code or hold secrets when it is read, so it is not pushed; leave it out.")
    names = [*core, *(name for name in (*ABOUT_FILES, *PROCESSOR_FILES) if name in there), *also]
    secrets = {token.encode() for token in (*tokens, get_token() or "") if token}
    for name in names:
        size_of(place / name, HubError)
        if _holds(place / name, secrets):
            raise HubError(f"{place / name} holds a token of the Hub; take it out before you push.")
    return Parcel(place, kind, tuple(dict.fromkeys(names)))


def sent(found: Parcel) -> dict[str, Path | bytes]:
    """What is sent under each name: the file, or other bytes where the file names the base by a local path.

    Of such a path its last component is sent, with a slash behind it as in "bert/": without one it would be the name
    of a repository, which others would load in the base's place. The folder stays as it is.
    """
    contents: dict[str, Path | bytes] = {path.name: path for path in found.paths}
    local: dict[str, str] = {}
    for file, (*above, key) in BASE_NAMES.items():
        if file not in contents:
            continue
        path = found.folder / file
        data = place = read_json(path, FACTS_BOUNDS, HubError)
        for name in above:
            place = place.get(name) if isinstance(place, dict) else None
        base = place.get(key) if isinstance(place, dict) else None
        if not isinstance(base, str) or not base or is_remote(base):
            continue
        public = f"{PureWindowsPath(base).name or 'base'}/"  # paths of Windows may come to any machine
        if public != base:
            place[key] = local[base] = public
            contents[file] = (json.dumps(data, indent=2) + "\n").encode()
    for base, public in local.items():
        logger.warning(
            "The base %s is a local folder, which others will not find: it is pushed as %r. To name it, load the base "
            "by its Hub id.",
            base,
            public,
        )
    return contents


def _holds(path: Path, secrets: set[bytes]) -> bool:
    """Whether a file has one of the secrets in it, or anything that looks like a token."""
    keep = 6 * (max((len(secret) for secret in secrets), default=0) + 64)  # \\u0068 for a letter
    tail = b""
    with path.open("rb") as file:
        while block := file.read(SCANNED_AT_ONCE):
            plain = tail + block
            for window in (plain, ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), plain)):
                if TOKEN.search(window) or any(secret in window for secret in secrets):
                    return True
            tail = plain[-keep:]
    return False
