"""Table 2 as a command: tasks x methods x rates x seeds, each a cell that is trained once and kept row by row.

    presets  the paper's recipe, and a modern one     grid     what is wanted: settings, cells, their order
    work     grid -> jobs: keys, strategies, rates     cell     a job -> figures and rows
    results  the files of a folder                     claim    who works on a cell
    backends this process, several, Ray                run      jobs -> backends -> files, until all is there
    estimate hours and bytes before anything runs

Importing it imports neither torch nor transformers; `cell`, `work`, `run`, `backends` and `estimate` do.
"""

from spafit_hf.reproduce.grid import Cell, Grid

__all__ = ["Cell", "Grid"]
