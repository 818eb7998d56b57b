"""How far a score can be trusted: standard errors, paired differences with intervals, and tests over tasks.

    predictions [cells, n], labels [n]
        --resampled, the same rows for every cell-->  scores [1 + draws, cells]
        --columns of the same seed subtracted------>  differences [1 + draws, seeds]
        --difference------------------------------->  mean, interval, "yes", "no" or "cannot tell"

The interval is over rows and seeds. Three seeds are too few to draw from with replacement: resampling both (the
multi-bootstrap, Sellam et al. 2022, arXiv:2106.16163) holds the truth in 75 of 100 simulated cases where the spread is
that of seeds, and in over 99 where it is that of rows by seeds, for nominal 95. So rows are drawn, in pairs, and seeds
come in by components of variance with Satterthwaite's degrees of freedom: 92 to 97 of 100 with three seeds, 84 to 96
with two. tests/test_reproduce_statistics.py repeats that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 2000
MARGIN = 0.01
"""What "not worse" allows: one point."""
BLOCK = 4_000_000
"""Resampled rows that are counted at once: 32 MB of row numbers."""


@dataclass(frozen=True)
class Difference:
    """A mean difference with its spread; in shares of 1, positive where the first method is better."""

    mean: float
    rows: float
    """Its variance by drawing other validation rows."""
    over_seeds: float
    """Its variance by drawing other seeds, beyond that of the rows."""
    doubt: float
    """over_seeds squared by its degrees of freedom, summed over tasks."""
    seeds: int
    """The fewest pairs of runs; with 1 the interval is over rows alone, and too narrow by what seeds bring."""

    @property
    def error(self) -> float:
        """Its standard error, by other rows and other seeds."""
        return math.sqrt(self.rows + self.over_seeds)

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval."""
        variance = self.rows + self.over_seeds
        freedom = variance**2 / self.doubt if self.doubt else math.inf
        return float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance)

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    @property
    def not_worse(self) -> str:
        """Whether the first is not worse by more than `MARGIN`: yes, no, or cannot tell."""
        if self.low > -MARGIN:
            return "yes"
        return "no" if self.high < -MARGIN else "cannot tell"


def resampled(figure: str, labels: np.ndarray, predictions: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """The figure of every cell on rows drawn with replacement, each draw the same rows for all cells.

    Args:
        figure: accuracy, f1, matthews_correlation or pearson.
        labels: [n], class ids or values.
        predictions: [cells, n], of the same rows.
        seed: of the draws.
        draws: how many.

    Returns:
        [1 + draws, cells], float64; the first line is the figure on the rows as they are. What is undefined (a
        correlation with a constant) is 0.
    """
    labels, predictions = np.asarray(labels), np.atleast_2d(predictions)
    n, columns = len(labels), _columns(figure, labels, predictions)
    # Counts of rows are whole numbers below 2^24: exact in float32, and so the same whatever the order of summation.
    dtype = np.float64 if figure == "pearson" else np.float32
    matrix = np.concatenate([column.astype(dtype) for column in columns]).T
    splits = np.cumsum([len(column) for column in columns])[:-1]
    rng = np.random.default_rng(seed)
    sums = [matrix.sum(axis=0, keepdims=True)]
    step = max(1, BLOCK // n)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        rows = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
        sums.append(times.astype(dtype) @ matrix)
    parts = np.split(np.concatenate(sums).astype(np.float64), splits, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(_value(figure, n, *parts), nan=0.0, posinf=0.0, neginf=0.0)


def _columns(figure: str, labels: np.ndarray, predictions: np.ndarray) -> list[np.ndarray]:
    """What has to be summed over rows: arrays [cells, n] or [1, n]."""
    if figure == "accuracy":
        return [predictions == labels]
    if figure in ("f1", "matthews_correlation"):
        ours, theirs = predictions == 1, labels == 1
        return [ours & theirs, ours, theirs[None]]
    if figure == "pearson":
        y = (labels - labels.mean(dtype=np.float64))[None]
        x = predictions - predictions.mean(axis=1, dtype=np.float64, keepdims=True)
        x = np.where(np.ptp(predictions, axis=1, keepdims=True) == 0, 0.0, x)  # a constant, less its rounding
        return [x, x * x, x * y, y, y * y]
    raise ValueError(
        f"Cannot resample {figure!r}. Allowed: accuracy, f1, matthews_correlation, pearson. Choose one of them."
    )


def _value(figure: str, n: int, *sums: np.ndarray) -> np.ndarray:
    if figure == "accuracy":
        return sums[0] / n
    if figure == "pearson":
        x, xx, xy, y, yy = sums
        return (n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    both, ours, theirs = sums
    if figure == "f1":
        return 2 * both / (ours + theirs)
    return (n * both - ours * theirs) / np.sqrt(ours * (n - ours) * theirs * (n - theirs))


def row_error(draws: np.ndarray) -> float:
    """What drawing other validation rows does to the score of one run: draws [draws, seeds] -> standard error."""
    return float(np.sqrt(draws.var(axis=0, ddof=1).mean()))


def accuracy_error(share: float, rows: int) -> float:
    """The same for an accuracy, in closed form: sqrt(p (1 - p) / n); .03 on RTE's 277 rows, .06 on WNLI's 71."""
    return math.sqrt(share * (1 - share) / rows)


def difference(scores: np.ndarray) -> Difference:
    """The mean over seeds of differences [1 + draws, seeds] of two methods' columns from one `resampled`."""
    values, draws = scores[0], scores[1:]
    seeds = len(values)
    rows, over_seeds, doubt = float(draws.mean(axis=1).var(ddof=1)), 0.0, 0.0
    if seeds > 1:
        # One seed has all of the variance of rows by seeds, the mean a part of it, and so has the spread over seeds.
        mixed = (draws.var(axis=0, ddof=1).mean() - rows) / (seeds - 1)
        over_seeds = max(0.0, float(values.var(ddof=1) / seeds - max(0.0, mixed)))
        doubt = over_seeds**2 / (seeds - 1)
    return Difference(float(values.mean()), rows, over_seeds, doubt, seeds)


def weighted(parts: Sequence[tuple[float, Difference]]) -> Difference:
    """The weighted sum over tasks, whose rows and runs have nothing to do with one another."""
    return Difference(
        mean=sum(weight * part.mean for weight, part in parts),
        rows=sum(weight**2 * part.rows for weight, part in parts),
        over_seeds=sum(weight**2 * part.over_seeds for weight, part in parts),
        doubt=sum(weight**4 * part.doubt for weight, part in parts),
        seeds=min(part.seeds for _, part in parts),
    )


def signed_rank(differences: Sequence[float]) -> tuple[float, float]:
    """Wilcoxon's signed rank test, two-sided and exact, ties included: every sign is tried.

    Zeros are left out, as Wilcoxon did. scipy's exact test is the same where there are no ties.

    Returns:
        The sum of the positive ranks, and p; p is 1 where no difference is left.
    """
    found = np.round(np.asarray(differences, dtype=np.float64), 12)  # equal but for rounding are ties
    found = found[found != 0]
    ranks = stats.rankdata(np.abs(found))
    statistic = float(ranks[found > 0].sum())
    sums = (np.arange(2 ** len(found))[:, None] >> np.arange(len(found)) & 1) @ ranks
    return statistic, float(min(1.0, 2 * min(np.mean(sums <= statistic), np.mean(sums >= statistic))))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p for a family of tests, in the order they came."""
    p = np.asarray(values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]
