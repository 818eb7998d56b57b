"""What a card is written from: plain facts, each of which may be unknown (None, or empty) and then leaves no trace.

`to_json` and `from_json` are inverse to each other: the folder keeps the facts beside the card, so that a card can be
written again after an edit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spafit_hf.files import Bounds, Fields, parse_json
from spafit_hf.words import SpafitError

FACTS_FILE = "spafit_results.json"
"""Beside the card in the folder: `CardFacts.to_json`."""
FACTS_FORMAT = 1
FACTS_BOUNDS = Bounds(size=16 * 2**20, entries=20_000, text=2**16)
MOST = {"steps": 20_000, "layers": 1000, "scores": 100, "figures": 100, "versions": 100}
"""Entries of a field, where they are not 10,000."""


class CardError(SpafitError):
    """Facts that cannot be read, or a card that must not be overwritten; the message says which and why."""


@dataclass(frozen=True)
class Base:
    """The pretrained model underneath."""

    id: str | None = None
    """On the Hub, as in "google-bert/bert-large-cased"; None for one that is only on some machine's disk."""
    revision: str | None = None
    """Commit of the Hub's repository that was trained on."""
    name: str | None = None
    """What to call one without an id."""
    license: str | None = None
    model_type: str | None = None
    model_class: str | None = None


@dataclass(frozen=True)
class Data:
    """What was trained and measured on."""

    id: str | None = None
    """On the Hub, as in "nyu-mll/glue"; None for local files."""
    config: str | None = None
    revision: str | None = None
    name: str | None = None
    """For a reader, as in "GLUE MRPC"."""
    task: str | None = None
    """A clause after "It decides": "whether two sentences mean the same"."""
    glue: str | None = None
    """Name of the GLUE task, if it is one: the paper's scores belong to it."""
    columns: tuple[str, ...] = ()
    train_split: str | None = None
    train_rows: int | None = None
    turned_rows: int | None = None
    """Rows of two texts that were trained on once more with them swapped."""
    max_length: int | None = None
    """Tokens after which texts were cut."""
    max_target_length: int | None = None
    """The same of texts to be written, where it was set."""
    license: str | None = None
    domain: str | None = None
    """Where the texts are from, as in "news"."""


@dataclass(frozen=True)
class Layers:
    """What trains in some layers of one stack, by a stratum or not; roles as in `spafit_hf.strategy.Stratum`."""

    name: str
    stack: str
    layers: tuple[int, ...]
    lora: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    bottlenecks: tuple[str, ...] = ()
    """Roles to whose output a bottleneck adapter is added."""
    r: int | None = None
    lora_alpha: float | None = None
    trained: int | None = None


@dataclass(frozen=True)
class Score:
    """Figures on one split."""

    split: str
    figures: dict[str, float] = field(default_factory=dict)
    rows: int | None = None


@dataclass(frozen=True)
class Step:
    """Figures at one moment of training."""

    step: int
    epoch: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What it took, as measured."""

    seconds: float | None = None
    hardware: str | None = None
    processes: int | None = None


@dataclass(frozen=True)
class CardFacts:
    """Everything a card says. Build it by hand, or with `facts_of_folder`, or let the trainer do it."""

    method: str
    """Strategy's name, such as "spafit-4-9-II"."""
    kind: str = "adapter"
    """"adapter", or "model" for a fully fine-tuned one."""
    title: str | None = None
    repo_id: str | None = None
    revision: str | None = None
    """Branch of the repo that the card is on; None for the default one, as which "main" and pull requests count."""
    task_type: str | None = None
    """PEFT's: "SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "TOKEN_CLS", ..."""
    pipeline_tag: str | None = None
    """The Hub's name of the task; derived from `task_type` where it follows."""
    problem_type: str | None = None
    """`PretrainedConfig.problem_type`."""
    labels: tuple[str, ...] = ()
    """In id order; empty for regression and language models."""
    form: str | None = None
    """How biases are stored (`spafit_hf.adapter.folder`); "native" is what plain PEFT cannot read."""
    has_tokenizer: bool = False
    """Whether the tokenizer's files are in the folder."""
    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    language: tuple[str, ...] = ()
    license: str | None = None
    tags: tuple[str, ...] = ()
    layers: tuple[Layers, ...] = ()
    outer_biases: bool = False
    """Whether biases outside the layers train too (embeddings, final norm, pooler)."""
    head: tuple[str, ...] = ()
    """Names of the modules of the head that train whole."""
    trained_parameters: int | None = None
    total_parameters: int | None = None
    file_bytes: int | None = None
    """Of the weights in this folder."""
    full_file_bytes: int | None = None
    """Of the weights of a fully fine-tuned model."""
    scores: tuple[Score, ...] = ()
    main_figure: str | None = None
    """The figure that counts; the first of a score if None."""
    steps: tuple[Step, ...] = ()
    best_step: int | None = None
    """Step of the weights in this folder, where the best was kept rather than the last."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Those that differ from their defaults."""
    all_hyperparameters: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    versions: dict[str, str] = field(default_factory=dict)
    command: str | None = None
    """The command line that trained it; no paths of the machine it ran on."""
    examples: tuple[tuple[str, ...], ...] = ()
    """Inputs to show in the usage, each with one text per column; never rows of a test split."""
    curve: str | None = None
    """File name of the picture of the training curve in the folder."""

    def __post_init__(self) -> None:
        if self.kind not in ("adapter", "model"):
            raise CardError(f"kind is {self.kind!r}; allowed are 'adapter' and 'model'.")
        if not all(self.examples):
            raise CardError("an example has no text; leave it out.")
        if self.command is not None and "```" in self.command:
            raise CardError("command holds ```, which would end its block in the card; leave it out.")
        # What is on a pull request is for the default branch, and stays as it is when it is merged.
        if self.revision == "main" or (self.revision or "").startswith("refs/pr/"):
            object.__setattr__(self, "revision", None)
        if self.data.glue and not self.language:
            object.__setattr__(self, "language", ("en",))
        # The same in every card, whether its facts come from a run or from a file.
        for name in ("scores", "steps"):
            object.__setattr__(self, name, tuple(map(self._as_in_a_file, getattr(self, name))))

    def _as_in_a_file(self, item: Any) -> Any:
        """A score or step without numbers that are not finite, which no file holds, and with the main figure first."""
        odd = [name for name, value in vars(item).items() if isinstance(value, float) and not math.isfinite(value)]
        figures = {name: value for name, value in item.figures.items() if math.isfinite(value)}
        if self.main_figure is not None:
            order = sorted(figures, key=lambda name: (name != self.main_figure, name))
            figures = {name: figures[name] for name in order}
        if not odd and [*figures] == [*item.figures]:
            return item  # as nearly all are, of up to 20,000 steps
        return replace(item, figures=figures, **dict.fromkeys(odd))

    @property
    def regression(self) -> bool:
        return self.problem_type == "regression"

    @property
    def takes_pairs(self) -> bool:
        """Whether an input is two texts; of a text and its summary, one is."""
        return self.task_type == "SEQ_CLS" and len(self.data.columns) == 2

    def to_json(self) -> str:
        """The facts that are known, as the text of a file. Equal facts give equal bytes."""
        known = {"format": FACTS_FORMAT, **_known(self)}
        return json.dumps(known, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CardFacts:
        """Inverse of `to_json`; a CardError for no JSON, another format, and a field that is unknown or of the wrong
        type."""
        return cls.from_data(parse_json(text.encode("utf-8", "surrogatepass"), FACTS_FILE, FACTS_BOUNDS, CardError))

    @classmethod
    def from_data(cls, data: Any) -> CardFacts:
        """The same from what the file holds."""
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if found != FACTS_FORMAT:
            raise CardError(f"the facts have format {found!r:.80}; this version reads format {FACTS_FORMAT}.")
        fields = {name: value for name, value in data.items() if name != "format"}
        return Fields(CardError, MOST).read(cls, fields, "facts")


def _known(value: Any) -> Any:
    """Without what is None, empty, False or not a number: what is unknown is not written."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_known(item) for item in value]
    items = value if isinstance(value, Mapping) else vars(value)
    kept = {str(key): _known(item) for key, item in items.items()}
    return {key: item for key, item in kept.items() if item not in (None, {}, []) and item is not False}
