"""How often a visitor may try something that costs a download."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

HOUR = 3600.0


class Tries:
    """Tries of the last hour. Not for two threads at a time.

    Args:
        limit: of one visitor in an hour.
        clock: seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._taken: deque[tuple[float, str]] = deque()

    def take(self, visitor: str) -> None:
        """Count a try.

        Raises:
            ValueError: beyond the limit.
        """
        now = self._clock()
        while self._taken and self._taken[0][0] <= now - HOUR:
            self._taken.popleft()
        times = [when for when, other in self._taken if other == visitor]
        if len(times) >= self.limit:
            minutes = math.ceil((times[0] + HOUR - now) / 60)
            raise ValueError(f"You have tried {len(times)} adapters within an hour; try again in {minutes} minutes.")
        self._taken.append((now, visitor))
