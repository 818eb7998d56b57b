"""What a fine-tuned model forgot, as `spafit forgetting` measured it, and the words and the table for it.

    Forgetting            of one base, on one text
      rows   Row          a model each: an adapter switched on, the same switched off, or a whole model
        layers            how far the states of a layer moved
        likelihood        what the language-model head makes of the text
        transfers         how well another task can be learned from the states

A `forgetting.json` in a folder is about the weights whose digest it holds: the card shows their rows and no others.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spafit_hf.card.facts import CardError
from spafit_hf.files import Bounds, Fields, digest, read_json, size_of
from spafit_hf.names import CONFIG_FILE, WEIGHTS_FILE
from spafit_hf.words import figure, figure_name, layers_text, plain, table

logger = logging.getLogger(__name__)

FORGETTING_FILE = "forgetting.json"
FORGETTING_FORMAT = 1
FORGETTING_BOUNDS = Bounds(size=4 * 2**20, entries=1000, text=1000)
MOST = {"rows": 100, "layers": 1000, "transfers": 20}
STATES = {"on": ", adapter on", "off": ", adapter off", "whole": ""}
"""What a row was measured of -> what stands behind its name."""


@dataclass(frozen=True)
class LayerDrift:
    """A layer's states against those of the base; both figures are 1 where nothing moved."""

    cosine: float
    """Mean over tokens."""
    cka: float
    """Linear centered kernel alignment over tokens (Kornblith et al. 2019, arXiv:1905.00414)."""
    equal: int
    """Tokens whose state is the base's, bit for bit."""


@dataclass(frozen=True)
class Likelihood:
    """Natural log-likelihoods of a token: means over texts of the means over their tokens."""

    before: float
    after: float
    change: float
    error: float
    """The standard error of the change, over texts, each paired with itself."""
    kl: float
    """From the base's predictions to the model's, in nats."""
    texts: int
    positions: int
    """Tokens that were predicted."""


@dataclass(frozen=True)
class Transfer:
    """Another task, learned from the frozen states of the base and of the model."""

    task: str
    figure: str
    rows: int
    before: float
    after: float
    change: float
    error: float
    """The standard error of the change, over rows, each paired with itself."""


@dataclass(frozen=True)
class Row:
    """What one model forgot."""

    name: str
    state: str
    """A key of `STATES`."""
    weights: str
    """`weights_digest` of the folder."""
    tensors: int
    """That the base's checkpoint holds."""
    equal_tensors: int
    """Those of them that the model has bit for bit."""
    distance: float
    """Norm of the difference of all of them over their norm."""
    frozen: int
    """Leading layers of which an adapter trains nothing, nor anything before them."""
    layers: tuple[LayerDrift, ...]
    likelihood: Likelihood | None = None
    transfers: tuple[Transfer, ...] = ()


@dataclass(frozen=True)
class Forgetting:
    """One measurement: what `forgetting.json` holds."""

    base: str
    text: str
    """Where the texts are from."""
    texts: int
    cut: int
    """Texts that lost their end."""
    tokens: int
    max_length: int
    seed: int
    """Of the choice of texts, masked tokens and folds."""
    note: str
    """What of the likelihood was measured, and how; or why it was not."""
    rows: tuple[Row, ...]
    format: int = FORGETTING_FORMAT

    def to_json(self) -> str:
        """The file's text. Equal figures give equal bytes."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Forgetting:
        """Inverse of `to_json`, from a file that may be a stranger's; a CardError for whatever is not in order."""
        data = read_json(path, FORGETTING_BOUNDS, CardError)
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if found != FORGETTING_FORMAT:
            raise CardError(f"{path.name} has format {found!r:.80}; this version reads format {FORGETTING_FORMAT}.")
        report: Forgetting = Fields(CardError, MOST, complete=True).read(cls, data, path.name)
        odd = [row.state for row in report.rows if row.state not in STATES or not row.layers]
        kinds = {(row.likelihood is None, tuple(each.task for each in row.transfers)) for row in report.rows}
        if odd or len(kinds) != 1:
            raise CardError(
                f"{path.name} needs rows with layers and the same figures, each one of {', '.join(STATES)}; found are "
                f"{len(kinds)} kinds of rows, and the states {odd!r:.80}. Measure again."
            )
        return report


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights in the folder of an adapter or a model; "" where they are no safetensors."""
    adapter = (folder / CONFIG_FILE).is_file()
    paths = [folder / WEIGHTS_FILE] if adapter else sorted(folder.glob("model*.safetensors"))
    there = [path for path in paths if size_of(path, CardError) is not None]
    return digest(*there) if there else ""


def forgetting_section(folder: Path) -> str:
    """What a folder's card says was forgotten; "" where nothing was measured of the weights in it."""
    path = folder / FORGETTING_FILE
    if size_of(path, CardError) is None:
        return ""
    report, weights = Forgetting.read(path), weights_digest(folder)
    rows = tuple(row for row in report.rows if row.weights == weights != "")
    if not rows:
        logger.warning("%s is about other weights than those in its folder and is left out; measure again.", path)
        return ""
    return forgetting_page(replace(report, rows=rows))


def forgetting_page(report: Forgetting) -> str:
    """The measurement in Markdown: what was read, the table, and what it means to the bit."""
    cut = f", {report.cut:,} of which lost what follows {report.max_length} tokens" if report.cut else ""
    lines = [
        f"Measured against {plain(report.base)} on {report.texts:,} texts ({plain(report.text)}){cut}: "
        f"{report.tokens:,} tokens.\n",
        _table(report),
        "",
    ]
    lines.append(
        "Drift: how far states moved, 1 - cosine (mean over tokens) and 1 - CKA; 0 is exact, equality bit for bit. "
        f"{plain(report.note)} Behind a value: the change and its standard error, each text or row paired with itself."
    )
    if transfers := report.rows[0].transfers:
        tasks = ", ".join(f"{plain(each.task)} {each.rows:,} rows" for each in transfers)
        lines[-1] += (
            f" Tasks learned from frozen states ({tasks}): mean of the last layer's states over a text's tokens, for "
            "pairs product and distance of both; ridge or logistic regression, five folds, the same for all."
        )
    for row in report.rows:
        if row.state == "on" and row.frozen:
            exact = all(layer.equal == report.tokens for layer in row.layers[: row.frozen])
            lines.append(
                f"\n{plain(row.name)} trains nothing up to layer {row.frozen - 1}. With the adapter on, the states "
                f"up to there {'are' if exact else 'are NOT'} the base's, bit for bit."
            )
    return "\n".join(lines)


def _table(report: Forgetting) -> str:
    first = report.rows[0]
    header = ["", "tensors as in the base", "distance of tensors", "layers without drift"]
    header += ["drift, all layers", "drift, last layer", "1 - CKA, last layer"]
    rows = [["base", f"{first.tensors:,} of {first.tensors:,}", "0", layers_text(range(len(first.layers))), *"000"]]
    if first.likelihood is not None:
        header += ["log-likelihood", "KL"]
        rows[0] += [figure(first.likelihood.before), "0"]
    header += [f"{plain(each.task)}, {plain(figure_name(each.figure))}" for each in first.transfers]
    rows[0] += [figure(each.before) for each in first.transfers]
    for row in report.rows:
        still = [index for index, layer in enumerate(row.layers) if layer.equal == report.tokens]
        mean, last = sum(1 - layer.cosine for layer in row.layers) / len(row.layers), row.layers[-1]
        cells = [plain(row.name) + STATES[row.state], f"{row.equal_tensors:,} of {row.tensors:,}"]
        cells += [_exact(row.distance), layers_text(still), *map(_exact, (mean, 1 - last.cosine, 1 - last.cka))]
        if row.likelihood is not None:
            cells += [_changed(row.likelihood), _exact(row.likelihood.kl)]
        rows.append([*cells, *map(_changed, row.transfers)])
    return table(header, rows, "l" + "r" * (len(header) - 1))


def _exact(value: float) -> str:
    """0 for nothing at all, as against what rounds to it."""
    return "0" if value == 0 else figure(value)


def _changed(value: Any) -> str:
    change = "0" if value.change == value.error == 0 else f"{value.change:+.4f} ± {value.error:.4f}"
    return f"{figure(value.after)} ({change})"
