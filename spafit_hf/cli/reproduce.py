"""spafit reproduce: the paper's table as one command that can be stopped, resumed, spread over machines, and read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spafit_hf.cli.recipe import read_recipe
from spafit_hf.files import check_folder
from spafit_hf.reproduce.grid import FLAGS, Grid
from spafit_hf.strategy.reading import closest

EPILOG = """\
A YAML file given first sets flags by name, and flags after it override the file. The folder holds a cell per training
run; a cell that is done is not run again, so the same command goes on where it was stopped, on several machines at
once where they share the folder.

examples:
  spafit reproduce --preset paper --dry_run
  spafit reproduce --base embedded --data_dir ./glue --tasks rte mrpc --methods full spafit-4-9-II --output runs/two
  spafit reproduce grid.yaml --output runs/grid --backend processes --workers 2
  spafit reproduce --output runs/grid --report
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `reproduce`; `run` carries it out."""
    parser = subparsers.add_parser(
        "reproduce",
        help="train tasks x methods x rates x seeds, such as the paper's Table 2, and report on them",
        description="Train a grid of tasks, methods, learning rates and seeds on GLUE, and report on it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # a flag that is not given leaves the file's value
    )
    parser.add_argument("file", nargs="?", metavar="GRID.yaml", help="flags by name")
    default = Grid()
    for name, (kind, text) in FLAGS.items():
        how: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
        if kind not in (str, int, float, bool):
            how = {"nargs": "+"}
        parser.add_argument(f"--{name}", help=f"{text} ({_shown(getattr(default, name))})", **how)
    parser.set_defaults(run=run, takes_more=True)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_shown(item)}" for name, item in value.items()).replace("others=", "") or "none"
    if isinstance(value, tuple):
        return (" " if isinstance(value[0], str) else ",").join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def run(args: argparse.Namespace) -> None:
    """Run the grid, or say what it would take, or report on what is there."""
    grid = read(args)
    from spafit_hf.run import quiet

    if grid.dry_run:
        from spafit_hf.reproduce.estimate import estimate

        with quiet():
            page = estimate(grid)
        print(page)
        return
    if not grid.output:
        raise ValueError("name the grid's folder: --output FOLDER.")
    check_folder(grid.output)
    if not grid.report:
        from spafit_hf.reproduce.backends import make
        from spafit_hf.reproduce.run import run_grid
        from spafit_hf.reproduce.work import Work

        with quiet():
            work = Work(grid)
        counts = run_grid(work, make(grid))
        print(f"{grid.output}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    from spafit_hf.reproduce.report import write_report
    from spafit_hf.reproduce.results import CELLS, Results

    folder = Path(grid.output)
    # Of a run that was killed; a folder that was passed on may hold the lines alone.
    if (folder / CELLS).is_dir() and (results := Results(folder)).known:
        results.write_lines()
    for path in write_report(folder):
        print(path)


def read(args: argparse.Namespace) -> Grid:
    """The grid of a file and flags.

    Raises:
        ValueError: for an unknown name, with the nearest, or a value that is none of its flag.
    """
    if args.rest:
        raise ValueError(f"reproduce has no flag {args.rest[0]}{closest(args.rest[0].lstrip('-'), FLAGS)}")
    layers = [{name: value for name, value in vars(args).items() if name in FLAGS}]
    if "file" in args:
        layers.insert(0, read_recipe(args.file))
    return Grid.from_layers(*layers)
