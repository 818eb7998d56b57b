"""A dataset from the Hub or from its cache, without waiting for a network that is not there."""

from __future__ import annotations

import functools
import logging
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from spafit_hf.data.table import DataError

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")


def no_hub() -> str:
    """Why the Hub cannot be asked, such as "HF_HUB_OFFLINE is set"; empty where it answers, which is asked once.

    The clients of the Hub retry for about 20 seconds before they give up. This asks once, through the same proxies,
    and waits for three, name resolution included.
    """
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            return f"{name} is set"
    from huggingface_hub import constants

    return "" if _answers(constants.ENDPOINT, 3.0) else "the Hugging Face Hub cannot be reached"


@functools.cache
def _answers(url: str, timeout: float) -> bool:
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout).close()
        except urllib.error.HTTPError:
            pass  # this request was refused, but something answers there
        except (OSError, ValueError):
            return
        answers.append(True)

    # A thread, because `timeout` does not cover name resolution, which can hang for far longer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def load_hub_dataset(
    dataset_id: str, config_name: str | None = None, *, local_hint: str = "Give local files instead."
) -> DatasetDict:
    """Every split of a dataset on the Hub, or of its copy in the datasets cache when the Hub cannot be reached.

    Args:
        dataset_id: `owner/name` or `name`.
        config_name: the configuration (subset), where the dataset has several.
        local_hint: what to do without the Hub, the last sentence of the error.

    Raises:
        DataError: unreachable and not cached, no such dataset, or a configuration that does not exist.
    """
    import datasets

    reason = no_hub()
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    if reason and not any(cache.glob(dataset_id.split("/")[0] + "*")):
        raise DataError(f"The dataset '{dataset_id}' is not in the cache ({cache}) and {reason}. {local_hint}")
    if reason:
        logger.info("%s: looking for '%s' in the cache %s.", reason, dataset_id, cache)
    try:
        loaded = datasets.load_dataset(dataset_id, config_name, cache_dir=str(cache))
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"There is no dataset '{dataset_id}' on the Hub that this login may read. Check the name, accept its "
            f"terms on the Hub, or log in with `hf auth login`."
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"The dataset '{dataset_id}'{f' ({config_name})' if config_name else ''} could not be loaded: "
            f"{str(error).strip()} {local_hint}"
        ) from error
    assert isinstance(loaded, datasets.DatasetDict)  # load_dataset without split=
    return loaded
