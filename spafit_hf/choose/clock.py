"""What trainings take, and so how many candidates, rows and epochs a time allows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spafit_hf.choose.candidates import Candidate
from spafit_hf.reproduce.estimate import PADDED
from spafit_hf.words import SpafitError, duration

SEEDS = (0, 1, 2)
SHARES = (0.25, 0.25)
"""Of the time that is left after the layers are read: the two rungs; the rest is the final's."""
MARGIN = 0.85
"""Of a stage's time is planned."""
LEAST_ROWS, FEW_ROWS = 32, 512
"""Rows of a training at least; and those of the first rung below which fewer candidates are tried, down to
`FEWEST`, which then have one rung with the time of both."""
FEWEST = 4


@dataclass(frozen=True)
class Stage:
    """What every candidate of a rung, or of the final, is given."""

    name: str
    rows: int
    epochs: int

    @property
    def kind(self) -> str:
        """rung or final: which rows are trained and measured on."""
        return self.name.split()[0]


def rung_shares(candidates: int) -> tuple[float, ...]:
    """The share of the time that each rung has."""
    return SHARES if candidates > FEWEST else (sum(SHARES),)


class Clock:
    """Seconds, predicted from FLOPs and then corrected by what the trainings before took.

    Args:
        per_second: FLOPs, of the steps that measured the gradients.
        start: seconds in which a base is loaded and some hundred rows are tokenized.
        eval_rows: measured on after each epoch, in a rung and in the final.
    """

    def __init__(self, per_second: float, start: float, eval_rows: Mapping[str, int]) -> None:
        self.per_second, self.start, self.eval_rows = per_second, start, eval_rows
        self.predicted = self.measured = 0.0

    def seconds(self, candidates: Sequence[Candidate], stage: Stage) -> float:
        """What a stage takes with every seed."""
        return self._raw(candidates, stage) * (self.measured / self.predicted if self.predicted else 1.0)

    def _raw(self, candidates: Sequence[Candidate], stage: Stage) -> float:
        held = self.eval_rows[stage.kind]
        trained = (stage.rows * each.step_flops + held * each.forward_flops for each in candidates)
        cached = {each.frozen: (stage.rows + held) * each.prefix_flops for each in candidates}
        flops = PADDED["group_by_length"] * (len(SEEDS) * stage.epochs * sum(trained) + sum(cached.values()))
        return len(SEEDS) * len(candidates) * self.start + flops / self.per_second

    def affordable(self, candidates: Sequence[Candidate], rows: int, seconds: float) -> list[Candidate]:
        """The first candidates, as many as the first rung can give `FEW_ROWS`.

        Raises:
            SpafitError: where not even a few can have `LEAST_ROWS`.
        """
        few, least = (Stage("rung", min(rows, count), 1) for count in (FEW_ROWS, LEAST_ROWS))
        count = len(candidates)
        while count > FEWEST and self.seconds(candidates[:count], few) > MARGIN * SHARES[0] * seconds:
            count -= 1
        share = MARGIN * rung_shares(count)[0]
        needed = self.seconds(candidates[:count], least)
        if needed > share * seconds:
            raise SpafitError(
                f"--budget time leaves {duration(max(0.0, seconds))} for trainings, and {LEAST_ROWS} rows for each "
                f"take {duration(needed / share)}; raise it, or name a smaller base."
            )
        return list(candidates[:count])

    def largest(self, name: str, candidates: Sequence[Candidate], rows: int, epochs: int, seconds: float) -> Stage:
        """The stage of so many seconds with the most rows, then with the most epochs; `LEAST_ROWS` once in any case.

        Args:
            name: of the stage.
            candidates: that take part.
            rows, epochs: at most.
            seconds: it may take.
        """
        allowed = MARGIN * seconds
        least = min(rows, LEAST_ROWS)
        counts = range(least, rows + 1)
        fit = bisect_right(counts, allowed, key=lambda count: self.seconds(candidates, Stage(name, count, 1)))
        most = counts[max(0, fit - 1)]
        times = bisect_right(
            range(1, epochs + 1), allowed, key=lambda count: self.seconds(candidates, Stage(name, most, count))
        )
        return Stage(name, most, max(1, times))

    def note(self, candidates: Sequence[Candidate], stage: Stage, took: float) -> None:
        """Learn from a stage that is done."""
        self.predicted += self._raw(candidates, stage)
        self.measured += took
