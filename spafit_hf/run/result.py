"""What a run did and gave, as `results.json` holds it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spafit_hf.words import is_spread

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class RunResult:
    """What a run did and gave; what `results.json` holds."""

    strategy: str
    base: str
    data: str
    task: str
    metrics: dict[str, dict[str, float | None]]
    """Evaluation split -> figure -> value; None for a figure that is undefined, such as Pearson of a constant."""
    main_figure: str
    trained_parameters: int
    total_parameters: int
    file_bytes: int
    """Of the weights written: the adapter's, or the whole model's."""
    train_rows: int
    train_seconds: float
    arguments: dict[str, Any]
    """What was asked for: data, base, and the training arguments that differ from their defaults."""
    history: list[dict[str, Any]]
    """What Trainer logged, step by step."""
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def score(self) -> float | None:
        """The main figure on the first evaluation split."""
        return next(iter(self.metrics.values()))[self.main_figure]

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `results.json` into a folder and return its path."""
        path = Path(folder) / RESULTS_FILE
        path.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path


def figures_text(figures: Mapping[str, float | None]) -> str:
    """Figures on a line: accuracy 0.8140, loss 0.4312. None and no number are undefined; what says how sure a figure
    is stands after it: rougeL 0.2100 (0.1900 to 0.2300), perplexity 12.1000 (standard error 0.4000)."""

    def text(name: str) -> str:
        value = figures[name]
        return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"

    def spread(name: str) -> str:
        if f"{name}_ci_low" in figures:
            return f" ({text(f'{name}_ci_low')} to {text(f'{name}_ci_high')})"
        return f" (standard error {text(f'{name}_se')})" if f"{name}_se" in figures else ""

    return ", ".join(f"{name} {text(name)}{spread(name)}" for name in figures if not is_spread(name))
