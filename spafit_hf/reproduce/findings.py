"""What the paper claims, beside what these runs say: claim, figures found, and holds, does not hold or cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

from spafit_hf.data.glue import TASKS
from spafit_hf.reproduce.statistics import MARGIN, Difference, weighted
from spafit_hf.reproduce.summary import Summary
from spafit_hf.reproduce.text import interval, title
from spafit_hf.strategy import METHODS
from spafit_hf.words import listed, share

OURS = "spafit-4-9-II"
HOLDS, FAILS, UNSURE, NOT_RUN = "holds", "does not hold", "cannot tell", "not run"

Finding = tuple[str, str, str]
"""The claim, what was found, the verdict."""


def findings(summary: Summary) -> list[Finding]:
    """The claims in the paper's order, then the two controls; each over the tasks that both sides have."""
    as_good = f"{title(OURS)} is at least as good as"
    better = f"{title(OURS)} is better than"
    return [
        _against(summary, "full", f"{as_good} full fine-tuning, with 2 % of its parameters", -MARGIN),
        _against(summary, "lora-II", f"{as_good} LoRA-II, with 40 % fewer parameters", -MARGIN),
        _single_sentences(summary),
        _bitfit_worst(summary),
        _against(summary, "lora-II-equal", f"{better} as many parameters spread evenly over all layers", 0.0),
        _against(summary, "random-cut", f"{better} strata cut at random", 0.0),
    ]


def _against(summary: Summary, other: str, claim: str, least: float) -> Finding:
    """A claim on the mean difference, which holds where the whole interval is above `least`."""
    found, tasks = summary.over(summary.counted, OURS, other)
    if found is None:
        return claim, f"no task has runs of {title(OURS)} and of {title(other)}", NOT_RUN
    ours, theirs = (
        round(sum(summary.entries[task, method].average_of("trained_parameters") or 0 for task in tasks) / len(tasks))
        for method in (OURS, other)
    )
    text = f"{_over(found, tasks)}; {ours:,} trained parameters, {share(ours, theirs)} of {theirs:,}"
    if not least and found.low > -MARGIN and found.high < MARGIN:
        text += "; a difference of a point either way is ruled out"
    # One that is worse for sure is not as good, were it by less than a point.
    verdict = FAILS if found.high < 0 else HOLDS if found.low > least else UNSURE
    return claim, text, verdict + (", within a point" if verdict == HOLDS and found.low < 0 else "")


def _single_sentences(summary: Summary) -> Finding:
    claim = f"{title(OURS)} falls behind full fine-tuning on single sentences (CoLA, SST-2) more than on pairs"
    texts = {task: len(TASKS[task].columns) for task in summary.counted}
    (single, alone), (pairs, two) = (
        summary.over([task for task in texts if texts[task] == number], OURS, "full") for number in (1, 2)
    )
    if single is None or pairs is None:
        return claim, "single sentences or pairs lack runs of both methods", NOT_RUN
    gap = weighted([(1, single), (-1, pairs)])
    text = f"{_over(single, alone)}; {_over(pairs, two)}; between them {interval(gap)}"
    return claim, text, HOLDS if gap.high < 0 else FAILS if gap.low > 0 else UNSURE


def _bitfit_worst(summary: Summary) -> Finding:
    claim = "BitFit is the worst of the paper's methods"
    others = [method for method in METHODS if method not in ("bitfit", "linear-probe")]
    over = {method: summary.over(summary.counted, "bitfit", method) for method in others}
    there = [(found, method, tasks) for method, (found, tasks) in over.items() if found is not None]
    if not there:
        return claim, "no task has runs of BitFit and of another method", NOT_RUN
    found, method, tasks = max(there, key=lambda one: one[0].mean)
    worse, better = all(found.high < 0 for found, *_ in there), any(found.low > 0 for found, *_ in there)
    text = f"BitFit less {title(method)}, the nearest of {len(there)} others: {_over(found, tasks)}"
    return claim, text, HOLDS if worse else FAILS if better else UNSURE


def _over(found: Difference, tasks: Sequence[str]) -> str:
    seeds = ", one seed on some" if found.seeds == 1 else ""
    return f"{interval(found)} points over {listed(TASKS[task].title for task in tasks)}{seeds}"
