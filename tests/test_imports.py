"""Data flows one way through the package, and so do its imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spafit_hf"

#: Leftmost first: a module may import only from those before it (and from its own folder). Card and Hub stand early:
#: they know facts and files, and no tensors.
FLOW = (
    "words",
    "files",
    "pypi",
    "names",
    "strategy",
    "data",
    "card",
    "hub",
    "architecture",
    "planner",
    "tuner",
    "embedded",
    "adapter",
    "shortcuts",
    "trainer",
    "run",
    "predictor",
    "reproduce",
    "choose",
    "cli",
)


def home(module: str) -> str:
    """The place of `spafit_hf.x.y` in the flow: x."""
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            if node.module == "spafit_hf":
                names.update(f"spafit_hf.{alias.name}" for alias in node.names if alias.name != "__version__")
    return {name for name in names if name.startswith("spafit_hf.")}


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_flow(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in FLOW, f"{own} has no place in the flow: add it to FLOW where it belongs"
    for name in imported(path):
        other = home(name)
        assert FLOW.index(other) <= FLOW.index(own), f"{own} imports {name}, which comes after it"


def test_no_file_comes_back_to_itself() -> None:
    """No circles between files, those of types alone included."""
    homes = {".".join(("spafit_hf", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in SOURCES}
    graph = {name: imported(path) & set(homes) for name, path in homes.items() if not name.endswith("__init__")}
    while leaves := {name for name, needs in graph.items() if not needs & set(graph)}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph, f"these import one another in a circle, or stand above one: {sorted(graph)}"


@pytest.mark.parametrize(
    "statement", ["import spafit_hf", "from spafit_hf import Strategy, Stratum", "import spafit_hf.cli"]
)
def test_the_pure_part_needs_no_torch(statement: str) -> None:
    code = f"import sys; {statement}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves() -> None:
    import spafit_hf

    for name in spafit_hf.__all__:
        assert getattr(spafit_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = spafit_hf.nonsense
