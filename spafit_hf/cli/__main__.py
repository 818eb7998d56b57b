"""`python -m spafit_hf.cli`: the command where no script is installed."""

from __future__ import annotations

import sys

from spafit_hf.cli import main

if __name__ == "__main__":  # a worker of `reproduce` imports this too
    sys.exit(main())
