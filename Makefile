# Posterior: make help

PYTHON ?=
EXTRA ?= cpu
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.set-up-$(EXTRA)
CHECKED := posterior envs models actors algorithms tests benchmarks setup_env

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow lint format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  EXTRA=gpu installs vLLM for CUDA instead of the CPU; ARGS='...' is handed to demo and test"

setup: $(STAMP)  ## install system packages and create .venv from pinned versions

$(STAMP): pyproject.toml setup_env/constraints.txt setup_env/setup.sh setup_env/stand_ins.py
	@EXTRA=$(EXTRA) PYTHON=$(PYTHON) bash setup_env/setup.sh
	@touch $@

demo: setup  ## train the toy model on the coding tasks (about 8 minutes on 2 cores) and write a report
	$(RUN) -m posterior demo $(ARGS)

test: setup  ## the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(ARGS)

test-slow: setup  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow $(ARGS)

lint: setup  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy $(CHECKED)

format: setup  ## put the code into the house style
	$(RUN) -m ruff check --fix-only --quiet .
	$(RUN) -m ruff format .

clean:  ## remove the environment, caches and build output (runs/ stays)
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
