# make run    a complete interleaved SFT-RL run on this machine, report included
# make test   the test suite            make check  style, types, layers
#             (the pages are tried in a browser where `apt-get install chromium` was done)
# make bench  seconds per step, split   make format rewrite the sources in the house style
# make monitors ARGS=DATASET            public monitors on the logs of a warning data set
#
# Options: PYTHON=python3.12  VENV=path/to/venv  ARGS="--seed 1"  PYTEST_ARGS="-m slow"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?= -n 2
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Its tests compare with the official checker. Without its dependencies: they cannot be installed
# beside ours, and what is used of it needs mpmath alone (extra bfcl).
BFCL := bfcl-eval==2026.3.23

.PHONY: run test check bench format monitors

run: $(VENV)/.installed
	$(VENV)/bin/toolrl run --scheme interleaved $(ARGS)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/step.py $(ARGS)

monitors: $(VENV)/.installed .venv-monitors/.installed
	$(VENV)/bin/python analysis/monitors.py $(ARGS)

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Stamps: nothing is installed again until the dependencies change.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt Makefile | $(VENV)/bin/python
	$(PIP) -e ".[dev,bfcl]"
	$(PIP) --no-deps $(BFCL)
	touch $(VENV)/.installed $@

# Other people's packages, in an environment that holds nothing of ours.
.venv-monitors/.installed: analysis/monitors_env/requirements.txt
	$(PYTHON) -m venv .venv-monitors
	.venv-monitors/bin/python -m pip --disable-pip-version-check install --quiet \
		--no-deps --only-binary :all: -r $<
	touch $@
