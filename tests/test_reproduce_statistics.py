"""Each function against a published worked example, a closed form, or a simulation whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from spafit_hf.data.figures import compute, jsonable
from spafit_hf.reproduce.statistics import (
    Difference,
    accuracy_error,
    difference,
    holm,
    resampled,
    row_error,
    signed_rank,
    weighted,
)

FIGURES = ("accuracy", "f1", "matthews_correlation", "pearson")


def predictions(figure: str, rows: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.uniform(0, 5, rows).astype(np.float32) if figure == "pearson" else rng.integers(2, size=rows)
    other = rng.uniform(0, 5, (cells, rows)).astype(np.float32) if figure == "pearson" else 1 - labels
    return labels, np.where(rng.random((cells, rows)) < 0.7, labels, other)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_draw_is_the_figure_of_the_drawn_rows(figure: str) -> None:
    labels, made = predictions(figure, 60, 3)
    found = resampled(figure, labels, made, seed=5, draws=40)
    rows = np.random.default_rng(5).integers(60, size=(40, 60))
    for line, drawn in zip(found, [np.arange(60), *rows], strict=True):
        wanted = [compute([figure], one[drawn], labels[drawn])[figure] for one in made]
        np.testing.assert_allclose(line, wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("figure", FIGURES)
def test_what_is_undefined_counts_as_0(figure: str) -> None:
    labels, made = predictions(figure, 60, 2)
    made[1] = 0.1 if figure == "pearson" else 0
    found = resampled(figure, labels, made, seed=0, draws=50)
    recorded = jsonable(compute([figure], made[1], labels))[figure]
    assert found[0, 1] == pytest.approx(recorded or 0.0)
    assert np.isfinite(found).all()
    if figure != "accuracy":
        assert not found[:, 1].any()


def test_draws_do_not_depend_on_how_many_are_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, made = predictions("f1", 60, 2)
    whole = resampled("f1", labels, made, seed=1, draws=50)
    monkeypatch.setattr("spafit_hf.reproduce.statistics.BLOCK", 60 * 7)
    np.testing.assert_array_equal(resampled("f1", labels, made, seed=1, draws=50), whole)


def test_an_unknown_figure_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="Allowed: accuracy, f1, matthews_correlation, pearson"):
        resampled("bleu", np.arange(3), np.arange(3), seed=0)


def test_the_error_of_a_validation_set() -> None:
    assert accuracy_error(0.57, 277) == pytest.approx(0.03, abs=0.0005)  # RTE
    assert accuracy_error(0.56, 71) == pytest.approx(0.06, abs=0.002)  # WNLI
    labels, made = predictions("accuracy", 500, 2)
    drawn = resampled("accuracy", labels, made, seed=2)
    closed = math.sqrt(np.mean([accuracy_error(share, 500) ** 2 for share in drawn[0]]))
    assert row_error(drawn[1:]) == pytest.approx(closed, rel=0.05)
    # Pearson of two normals, whose standard error is (1 - r^2) / sqrt(n).
    rng = np.random.default_rng(4)
    x = rng.normal(size=2000)
    drawn = resampled("pearson", x, (0.8 * x + 0.6 * rng.normal(size=2000))[None], seed=0)
    assert row_error(drawn[1:]) == pytest.approx((1 - 0.64) / math.sqrt(2000), rel=0.08)


def test_signed_rank_gives_the_published_p() -> None:
    # Hollander and Wolfe (1973), page 29 f.: Hamilton's depression scale in nine patients; R's wilcox.test has
    # V = 40 and a one-sided p of 0.01953 for them.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    assert signed_rank(np.subtract(before, after)) == (40.0, pytest.approx(2 * 0.01953, abs=1e-5))
    # Darwin's corn, in the documentation of scipy.stats.wilcoxon: the smaller sum of ranks is 24, p is 0.04126.
    corn = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]
    assert signed_rank(corn) == (120 - 24.0, pytest.approx(0.041259765625))


@pytest.mark.parametrize("count", range(1, 10))
def test_signed_rank_is_scipys_where_there_are_no_ties(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count)
    found = stats.wilcoxon(values, method="exact", alternative="two-sided")
    assert signed_rank(values)[1] == pytest.approx(found.pvalue)


def test_signed_rank_with_ties_and_zeros() -> None:
    # Ranks 2, 2, 2, 4: of 16 signs, four give 8 or more.
    assert signed_rank([0.1, 0.1, -0.1 - 1e-16, 0.2, 0.0]) == (8.0, 0.5)
    assert signed_rank([0.0, 0.0]) == (0.0, 1.0)


def test_holm_gives_the_textbook_values() -> None:
    # The worked example of Wikipedia's "Holm-Bonferroni method": of these, the first and the fourth are rejected.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def coverage(rows: float, seeds: float, mixed: float, runs: int = 3) -> tuple[float, float]:
    """How often the interval holds the true difference 0, and how often that of the multi-bootstrap does.

    Args:
        rows, seeds, mixed: variances of the mean difference by rows, by seeds and by rows with seeds.
        runs: seeds.
    """
    rng = np.random.default_rng(0)
    n, draws, times, ours, theirs = 100, 200, 1000, 0, 0
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    for _ in range(times):
        by_row = rng.normal(0, math.sqrt(rows * n), (n, 1)) + rng.normal(0, math.sqrt(seeds * runs), runs)
        by_row = by_row + rng.normal(0, math.sqrt(mixed * n * runs), (n, runs))
        drawn = weights @ by_row
        found = difference(np.concatenate([by_row.mean(axis=0)[None], drawn]))
        ours += found.low < 0 < found.high
        both = np.take_along_axis(drawn, rng.integers(runs, size=(draws, runs)), axis=1).mean(axis=1)
        theirs += np.quantile(both, 0.025) < 0 < np.quantile(both, 0.975)
    return ours / times, theirs / times


def test_intervals_hold_the_truth_as_often_as_stated() -> None:
    by_rows, _ = coverage(1, 0, 0)
    by_seeds, resampling_seeds = coverage(0, 1, 0.02)
    mixed, resampling_mixed = coverage(0.2, 0.1, 0.7)
    assert 0.92 < by_rows < 0.97
    assert 0.89 < by_seeds < 0.97
    assert 0.92 < mixed < 0.98
    assert resampling_seeds < 0.8  # why seeds are not resampled
    assert resampling_mixed > 0.97


def test_one_seed_has_the_spread_of_rows_alone() -> None:
    labels, made = predictions("accuracy", 400, 2)
    drawn = resampled("accuracy", labels, made, seed=0)
    found = difference(drawn[:, :1] - drawn[:, 1:])
    assert (found.seeds, found.over_seeds) == (1, 0.0)
    # Of paired differences by row, the standard error of the mean.
    by_row = (made[0] == labels).astype(float) - (made[1] == labels)
    assert found.half == pytest.approx(1.96 * by_row.std() / math.sqrt(400), rel=0.06)


def test_pairs_are_narrower_than_two_samples() -> None:
    labels, made = predictions("f1", 400, 1)
    made = np.concatenate([made, made])
    made[1, :5] = 1 - made[1, :5]
    drawn = resampled("f1", labels, made, seed=0)
    assert difference(drawn[:, :1] - drawn[:, 1:]).half < 0.5 * 1.96 * row_error(drawn[1:])


def test_a_mean_over_tasks_adds_variances_and_their_freedom() -> None:
    one = Difference(mean=0.02, rows=1e-4, over_seeds=4e-4, doubt=(4e-4) ** 2 / 2, seeds=3)
    two = Difference(mean=-0.01, rows=1e-4, over_seeds=0.0, doubt=0.0, seeds=2)
    found = weighted([(0.5, one), (0.5, two)])
    assert found.mean == pytest.approx(0.005)
    assert found.rows + found.over_seeds == pytest.approx(1.5e-4)
    assert found.seeds == 2
    # Satterthwaite: (sum of variances)^2 over the sum of their squares by degrees of freedom; rows' have no end.
    freedom = (1.5e-4) ** 2 / ((1e-4) ** 2 / 2)
    assert found.half == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(1.5e-4))


@pytest.mark.parametrize(
    ("mean", "verdict"), [(0.0, "yes"), (-0.004, "yes"), (-0.01, "cannot tell"), (-0.016, "no"), (0.05, "yes")]
)
def test_the_verdict_on_not_worse(mean: float, verdict: str) -> None:
    assert Difference(mean, (0.005 / 1.96) ** 2, 0.0, 0.0, 3).not_worse == verdict
