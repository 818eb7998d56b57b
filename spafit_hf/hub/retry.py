"""Trying again: longer and longer waits, or as long as the Hub says."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from spafit_hf.hub.errors import FAILURES, answer, is_passing
from spafit_hf.words import first_line

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How often and how long to wait for a Hub that does not answer as it should."""

    tries: int = 6
    first: float = 1.0
    """Seconds before the second try; each further wait is twice as long."""
    longest: float = 30.0
    longest_asked: float = 300.0
    """Seconds at most where the Hub itself says how long to wait (Retry-After)."""

    def waits(self) -> Iterator[float]:
        """Seconds before each further try."""
        for attempt in range(self.tries - 1):
            yield min(self.first * 2**attempt, self.longest)

    def wait(self, planned: float, error: Exception, doing: str) -> None:
        """Sleep before another try, as long as planned or as the Hub asks."""
        found = answer(error)
        wished = "" if found is None else found.headers.get("Retry-After", "")
        asked = min(float(wished), self.longest_asked) if wished.isascii() and wished.isdecimal() else 0.0
        seconds = max(planned, asked)
        logger.warning("%s failed (%s); trying again in %g s.", doing, first_line(error)[:200], seconds)
        time.sleep(seconds)


def patiently(function: Callable[[], Result], doing: str, patience: Patience) -> Result:
    """Call what is harmless to repeat until it works, as long as its failure is one that passes."""
    for planned in patience.waits():
        try:
            return function()
        except FAILURES as error:
            if not is_passing(error):
                raise
            patience.wait(planned, error, doing)
    return function()
