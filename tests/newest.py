"""The newest of everything beside the tested set in constraints.txt: what `make newest` installs, and what moved.

python tests/newest.py names     what pyproject.toml depends on, without its ranges; torch, which has a pin, left out
python tests/newest.py moved     packages of this environment whose version is not the pinned one
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]


def names() -> list[str]:
    """Every dependency and every extra by name, with its own extras, such as gradio[mcp]."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    found = [match[0] for each in listed if (match := re.match(r"[\w.-]+(\[[\w,]+\])?", each))]
    return [name for name in dict.fromkeys(found) if name != "torch" and not name.startswith(project["name"])]


def pins() -> dict[str, str]:
    """Package -> version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+)==([^\s;]+)", line))}


def moved() -> list[str]:
    """One line per pinned package that has another version here."""
    lines = []
    for name, pinned in pins().items():
        try:
            found = version(name).partition("+")[0]  # +cpu and the like
        except PackageNotFoundError:
            found = "not installed"
        if found != pinned:
            lines.append(f"{name} {pinned} -> {found}")
    return lines


if __name__ == "__main__":
    print("\n".join({"names": names, "moved": moved}[sys.argv[1]]() or ["nothing moved"]))
