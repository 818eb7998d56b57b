"""What can go wrong on the way, on demand and counted.

refuse     answered with a status before anything happens           (503, 429 with Retry-After)
drop       the connection closes after `after` bytes of the body     (cut while uploading)
lose       all is done, then the connection closes without a reply   (a commit whose answer was lost)
cut        the reply stops halfway through its body                  (cut while downloading)
endless    the reply's body goes on until the client hangs up        (a Hub that declared less)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    kind: str
    method: str = ""
    path: str = ""
    """Regular expression, searched in the path; "" is any."""
    times: int = 1
    """How often; -1 is for ever."""
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"<html>on demand</html>"
    """Of what is refused: as a proxy in front of the Hub answers, with a page, where the client expects JSON."""
    after: int = 0
    """Bytes of the body that are read before a drop."""

    def fits(self, method: str, path: str) -> bool:
        return self.times != 0 and self.method in ("", method) and re.search(self.path, path) is not None


class Faults:
    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def next(self, method: str, path: str) -> Fault | None:
        """The first fault that fits, counted down by one."""
        with self._lock:
            for fault in self._faults:
                if fault.fits(method, path):
                    fault.times -= 1 if fault.times > 0 else 0
                    return fault
        return None
