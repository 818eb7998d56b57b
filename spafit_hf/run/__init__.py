"""One run, from names to a folder: the library behind `spafit train`, `evaluate` and `quickstart`.

data     names -> rows and figures        train    data, base, strategy -> adapter folder, results
base     names -> model and tokenizer     task     what classification and generation bring of their own
result   results.json                     progress bars, a line per evaluation, and quiet
"""

from spafit_hf.run.base import BaseArguments, trained_on
from spafit_hf.run.classification import load_classifier
from spafit_hf.run.data import MAX_LENGTH, MAX_TARGET_LENGTH, DataArguments, RunData, hold_out, load_data
from spafit_hf.run.progress import Progress, quiet
from spafit_hf.run.result import RESULTS_FILE, RunResult, figures_text
from spafit_hf.run.train import evaluate, parameters_of, prepare, train

__all__ = [
    "MAX_LENGTH", "MAX_TARGET_LENGTH", "RESULTS_FILE", "BaseArguments", "DataArguments", "Progress", "RunData",
    "RunResult", "evaluate", "figures_text", "hold_out", "load_classifier", "load_data", "parameters_of", "prepare",
    "quiet", "train", "trained_on",
]  # fmt: skip
