"""What an environment lacks to run the package and its tests: `python benchmarks/lacking.py` prints it, a line each.

Needs the standard library alone, so that any Python can be asked. Exits with 1 where something is lacking.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def lacking(wanted: list[str]) -> list[str]:
    """A line for each requirement, such as "peft>=0.21,<0.22", that this Python does not meet."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]
    lines = []
    for requirement in map(Requirement, wanted):
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            lines.append(str(requirement))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            lines.append(f"{requirement} (it has {found})")
    return lines


def main() -> int:
    """Print what is lacking of the dependencies in pyproject.toml, and of pytest."""
    try:
        import tomllib
    except ImportError:
        print("Python 3.11 or newer")
        return 1
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    lines = lacking([*tomllib.loads(text)["project"]["dependencies"], "pytest>=8"])
    print("\n".join(lines))
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
