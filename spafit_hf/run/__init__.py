"""One run, from names to a folder: the library behind `spafit train`, `evaluate` and `quickstart`.

data     names -> rows and figures        train    data, base, strategy -> adapter folder, results
result   results.json
"""

from spafit_hf.run.data import DataArguments, RunData, load_data
from spafit_hf.run.result import RESULTS_FILE, RunResult
from spafit_hf.run.train import BaseArguments, evaluate, load_classifier, train

__all__ = [
    "RESULTS_FILE",
    "BaseArguments",
    "DataArguments",
    "RunData",
    "RunResult",
    "evaluate",
    "load_classifier",
    "load_data",
    "train",
]
