"""An adapter folder: write it, check it, load it, turn it into something else. See `folder` for its format."""

from __future__ import annotations

from spafit_hf.adapter.convert import export_adapter, merge_adapter
from spafit_hf.adapter.folder import AdapterError, BaseFacts, Sidecar
from spafit_hf.adapter.load import fetch_adapter, load_adapter, load_base
from spafit_hf.adapter.start import start_from
from spafit_hf.adapter.verified import VerifiedAdapter
from spafit_hf.adapter.verify import verify_adapter
from spafit_hf.adapter.write import portable_obstacle, save_adapter
from spafit_hf.names import CONFIG_FILE, SIDECAR_FILE, WEIGHTS_FILE
from spafit_hf.tuner import SpafitConfig, get_spafit_model

__all__ = [
    "CONFIG_FILE", "SIDECAR_FILE", "WEIGHTS_FILE", "AdapterError", "BaseFacts", "Sidecar", "SpafitConfig",
    "VerifiedAdapter", "export_adapter", "fetch_adapter", "get_spafit_model", "load_adapter",
    "load_base", "merge_adapter", "portable_obstacle", "save_adapter", "start_from", "verify_adapter",
]  # fmt: skip
