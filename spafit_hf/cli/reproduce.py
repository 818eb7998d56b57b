"""spafit reproduce: the paper's table as one command that can be stopped, resumed, spread over machines, and read."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from spafit_hf.reproduce.grid import Grid, read_value
from spafit_hf.strategy.reading import closest, parse_yaml

EPILOG = """\
A YAML file given first sets flags by name, and flags after it override the file. The folder holds a cell per training
run; a cell that is done is not run again, so the same command goes on where it was stopped, on several machines at
once where they share the folder.

examples:
  spafit reproduce --preset paper --dry_run --output runs/paper
  spafit reproduce --base embedded --data_dir ./glue --tasks rte mrpc --methods full spafit-4-9-II --output runs/two
  spafit reproduce grid.yaml --output runs/grid --backend processes --workers 2
  spafit reproduce --output runs/grid --report
"""

BACKENDS = ("local", "processes", "ray")

#: Flags that say where and not what; a file may set them too.
RUN: dict[str, tuple[Any, str]] = {
    "output": ("", "The grid's folder."),
    "data_dir": ("", "Folder with <task>/train.parquet; without it the tasks are loaded from the Hub."),
    "backend": ("local", "Where cells run: local (this process), processes (several here), ray (a cluster)."),
    "workers": (0, "Cells at a time; processes: 2, ray: what the cluster has room for."),
    "worker_cpus": (1.0, "Ray: CPUs of a cell."),
    "worker_gpus": (0.0, "Ray: GPUs of a cell; a fraction lets several share one."),
    "dry_run": (False, "Print cells, parameters, hours and bytes, and stop."),
    "report": (False, "Write the report from what is there, and stop."),
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
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
    described = [(name, default, text) for name, (default, text) in RUN.items()]
    described += [(each.name, getattr(DEFAULT, each.name), each.metadata["help"]) for each in fields(Grid)]
    for name, default, text in described:
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", nargs="?", const=True, help=f"{text} ({_shown(default)})")
        else:
            several = {"nargs": "+"} if isinstance(default, (tuple, dict)) else {}
            parser.add_argument(f"--{name}", help=f"{text} ({_shown(default)})", **several)  # type: ignore[arg-type]
    parser.set_defaults(run=run, takes_more=True)
    return parser


DEFAULT = Grid()


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        words = (f"{name}={_shown(item)}" for name, item in value.items())
        return " ".join(word.removeprefix("others=") for word in words) or "none"
    if isinstance(value, tuple):
        return (" " if isinstance(value[0], str) else ",").join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def run(args: argparse.Namespace) -> int:
    """Run the grid, or say what it would be, or report on it.

    Returns:
        0. Errors of the user are raised as ValueError.
    """
    from spafit_hf.run import quiet

    grid, where = read(args)
    folder = Path(where["output"])
    if where["report"]:
        return _report(folder)
    if where["dry_run"]:
        from spafit_hf.reproduce.estimate import estimate

        with quiet():
            page = estimate(grid, where["data_dir"], max(1, where["workers"]))
        print(page)
        return 0
    from spafit_hf.reproduce.backends import make
    from spafit_hf.reproduce.run import run_grid
    from spafit_hf.reproduce.work import Work

    with quiet():
        work = Work(grid, where["data_dir"], folder)
    backend = make(where["backend"], where["workers"], where["worker_cpus"], where["worker_gpus"])
    counts = run_grid(work, backend)
    print(f"{folder}: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return _report(folder)


def read(args: argparse.Namespace) -> tuple[Grid, dict[str, Any]]:
    """The grid, and where it runs, from a file and flags.

    Raises:
        ValueError: for an unknown name, with the nearest, or a value that is none of its flag.
    """
    names = {*RUN, *(each.name for each in fields(Grid))}
    if args.rest:
        raise ValueError(f"reproduce has no flag {args.rest[0]}{closest(args.rest[0].lstrip('-'), names)}")
    layers = [{name: value for name, value in vars(args).items() if name in names}]
    if "file" in args:
        try:
            values = parse_yaml(Path(args.file).read_text(encoding="utf-8"), args.file)
        except OSError as error:
            raise ValueError(f"{args.file} cannot be read: {error.strerror}.") from error
        if not isinstance(values, dict):
            raise ValueError(f"{args.file} holds a {type(values).__name__}; expected is a mapping of flags to values.")
        for name in values:
            if name not in names:
                raise ValueError(f"{args.file} sets {name!r}, which is no flag{closest(str(name), names)}")
        layers.insert(0, values)
    where = {name: default for name, (default, _) in RUN.items()}
    for layer in layers:
        for name in RUN.keys() & layer.keys():
            where[name] = read_value(layer.pop(name), type(where[name]).__name__, name)
    if where["backend"] not in BACKENDS:
        raise ValueError(f"--backend is {where['backend']!r}; allowed are {', '.join(BACKENDS)}.")
    if not where["output"] and not where["dry_run"]:
        raise ValueError("name the grid's folder: --output FOLDER.")
    return Grid.from_layers(*layers), where


def _report(folder: Path) -> int:
    from spafit_hf.reproduce.report import write_report
    from spafit_hf.reproduce.results import CELLS, Results

    # Of a run that was killed; a folder that was passed on may hold the lines alone.
    if (folder / CELLS).is_dir() and (results := Results(folder)).known:
        results.write_lines()
    for path in write_report(folder):
        print(path)
    return 0
