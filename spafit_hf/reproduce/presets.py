"""Recipes by name. What a recipe does not set is the default of `Grid`, which is the modern recipe."""

from __future__ import annotations

from typing import Any

from spafit_hf.data.glue import PAPER_SCORES

PAPER_TASKS = tuple(PAPER_SCORES)
"""The columns of the paper's Table 2."""
PAPER_METHODS = tuple(next(iter(PAPER_SCORES.values())))
"""Its rows."""

CONTROLS = ("lora-II-equal", "random-cut")
"""Methods that are no strategy's name: LoRA in all layers at the rank that gives the parameters of spafit-4-9-II, and
SPAFIT with bounds that are drawn from the seed."""

UNCACHED = "-uncached"
"""What a method's name ends with where it is to run without the prefix cache in a grid that has it."""

MODERN_RATES: dict[str, tuple[float, ...]] = {
    "full": (1e-5, 2e-5, 5e-5),
    "bitfit": (4e-4, 1e-3),
    "linear-probe": (1e-3, 1e-2),
    "others": (1e-4, 2e-4, 5e-4),
}

PRESETS: dict[str, dict[str, Any]] = {
    "modern": {},
    # arXiv:2405.00201, section 4; batches of 8 were for the memory of one V100. Nothing is held out of train there:
    # epoch and rate are the best on the validation set. Warm-up and sampling are not stated, so they are Trainer's.
    "paper": {
        "methods": PAPER_METHODS,
        "learning_rates": {"others": (2e-3, 6e-3, 2e-5, 6e-5)},
        "search_rates": {},
        "num_train_epochs": 10.0,
        "per_device_train_batch_size": {"others": 16, "mnli": 8, "qnli": 8, "qqp": 8},
        "weight_decay": 0.01,
        "warmup_steps": 0.0,
        "lora_r": 64,
        "lora_alpha": 128.0,
        "head_factor": 1.0,
        "selection_rows": 0,
        "train_sampling_strategy": "random",
        "prefix_cache": False,
    },
}
