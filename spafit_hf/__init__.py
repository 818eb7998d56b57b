"""Fine-tune transformers in strata: early layers frozen, middle layers by their biases, late layers with LoRA.

The method is SPAFIT (arXiv:2405.00201); the package is not by its authors. Data flows one way through it:

    name -> strategy -> plan -> tuner -> trainer -> adapter folder -> card -> Hub -> predictor -> Space

Names are imported when first used, so that `import spafit_hf` and strategies cost no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spafit_hf.names import __version__

if TYPE_CHECKING:
    from spafit_hf.adapter import load_adapter, save_adapter
    from spafit_hf.planner import Plan, plan
    from spafit_hf.predictor import Prediction, SpafitPredictor
    from spafit_hf.strategy import Strategy, Stratum
    from spafit_hf.trainer import SpafitSeq2SeqTrainer, SpafitTrainer
    from spafit_hf.trainer.arguments import SpafitSeq2SeqTrainingArguments, SpafitTrainingArguments
    from spafit_hf.tuner import SpafitConfig, get_spafit_model

_HOMES = {
    "Stratum": "strategy",
    "Strategy": "strategy",
    "Plan": "planner",
    "plan": "planner",
    "SpafitConfig": "adapter",  # which gives what is wrapped a save_pretrained that plain PEFT reads
    "get_spafit_model": "adapter",
    "load_adapter": "adapter",
    "save_adapter": "adapter",
    "SpafitTrainingArguments": "trainer",
    "SpafitSeq2SeqTrainingArguments": "trainer",
    "SpafitTrainer": "trainer",
    "SpafitSeq2SeqTrainer": "trainer",
    "Prediction": "predictor",
    "SpafitPredictor": "predictor",
}

__all__ = [
    "Plan", "Prediction", "SpafitConfig", "SpafitPredictor", "SpafitSeq2SeqTrainer", "SpafitSeq2SeqTrainingArguments",
    "SpafitTrainer", "SpafitTrainingArguments", "Strategy", "Stratum", "__version__", "get_spafit_model",
    "load_adapter", "plan", "save_adapter",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"spafit_hf.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
