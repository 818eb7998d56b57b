"""One run, from names to a folder: the library behind `spafit train`, `evaluate` and `quickstart`.

data     names -> rows and figures        train    data, base, strategy -> adapter folder, results
result   results.json                     progress bars, a line per evaluation, and quiet
"""

from spafit_hf.run.data import DataArguments, RunData, load_data
from spafit_hf.run.progress import Progress, quiet
from spafit_hf.run.result import RESULTS_FILE, RunResult, figures_text
from spafit_hf.run.train import BaseArguments, evaluate, load_classifier, train

__all__ = [
    "RESULTS_FILE",
    "BaseArguments",
    "DataArguments",
    "Progress",
    "RunData",
    "RunResult",
    "evaluate",
    "figures_text",
    "load_classifier",
    "load_data",
    "quiet",
    "train",
]
