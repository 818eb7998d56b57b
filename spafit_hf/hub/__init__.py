"""The Hub: push a folder, pull a repo. All through huggingface_hub; no torch needed.

files    which files leave the machine        push      folder -> repo, one commit whatever happens
errors   what to do, in one sentence          pull      repo -> folder, named files of one commit
retry    how long to try                      base      version and license of a base
"""

from __future__ import annotations

from spafit_hf.hub.base import BaseVersion, base_version, cached_revision, hub_is_away
from spafit_hf.hub.errors import HubError
from spafit_hf.hub.files import Parcel, parcel
from spafit_hf.hub.pull import Pulled, pull_adapter
from spafit_hf.hub.push import Pushed, full_repo_id, push_adapter
from spafit_hf.hub.retry import Patience

__all__ = [
    "BaseVersion", "HubError", "Parcel", "Patience", "Pulled", "Pushed", "base_version", "cached_revision",
    "full_repo_id", "hub_is_away", "parcel", "pull_adapter", "push_adapter",
]  # fmt: skip
