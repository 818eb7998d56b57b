"""The parser of every command: a flag given twice is an error, where argparse takes the last one in silence."""

from __future__ import annotations

import argparse
from typing import Any


class _Once(argparse.Action):
    """Stores what a flag is given, once in a command line."""

    _seen: argparse.Namespace | None = None

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        if namespace is self._seen:  # a new one is of another command line
            several = self.nargs == "+"
            raise argparse.ArgumentError(
                self, "given twice; " + ("name all after one, with blanks between." if several else "keep one.")
            )
        self._seen = namespace
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose flags are stored once; those with an action of their own are argparse's."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:  # type: ignore[override]
        """Argparse's."""
        if names[0].startswith("-"):
            settings.setdefault("action", _Once)
        return super().add_argument(*names, **settings)
