# Everything happens in a virtual environment in the checkout. `make` lists the targets.

VENV ?= .venv
# The interpreter to make the environment with; without it, the first of the usual names that is new enough.
PYTHON ?=
# More arguments for pytest or the benchmark: make test ARGS="-k docs"
ARGS ?=

BIN := $(VENV)/bin
# An environment whose interpreter has gone is made anew.
GONE := $(shell test -x $(BIN)/python || rm -f $(VENV)/.installed $(VENV)/.installed-dev)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench bench-mapping bench-service clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1  -  \2/p' Makefile

install: $(VENV)/.installed ## install the worker into .venv

demo: $(VENV)/.installed ## run one flow over three days of a simulated Mixpanel and show the table
	@$(BIN)/python -m worker.demo

test: $(VENV)/.installed-dev ## run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev ## check style, types and layers
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## put the code into the one format
	$(BIN)/python -m ruff check --fix-only .
	$(BIN)/python -m ruff format .

bench: $(VENV)/.installed ## measure the main job beside curl and DuckDB (needs curl, takes minutes)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-mapping: $(VENV)/.installed ## measure mapping by expressions beside the tutorial's set and beside Python row by row
	$(BIN)/python -m benchmarks.mapping $(ARGS)

bench-service: $(VENV)/.installed-dev ## measure the service with 1,000 flows and 100,000 runs (with PostgreSQL where it is)
	$(BIN)/python -m benchmarks.service $(ARGS)

clean: ## remove the environment, the demo, the benchmark and caches; never your lake or your state
	rm -rf $(VENV) .demo .bench build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing the worker into $(VENV); the first time this takes a minute …"
	@$(PIP) install --editable .
	@touch $@

# Dependency groups need pip 25.1.
$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	@echo "Installing the worker and what its tests need into $(VENV); the first time this takes a minute …"
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable . --group dev
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@for name in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	    command -v "$$name" >/dev/null 2>&1 || continue; \
	    if ! "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then continue; fi; \
	    if ! "$$name" -c 'import ensurepip, venv' >/dev/null 2>&1; then bare="$${bare:-$$name}"; continue; fi; \
	    echo "Making $(VENV) with $$("$$name" --version) ($$name) …"; \
	    exec "$$name" -m venv --clear $(VENV); \
	done; \
	if [ -n "$$bare" ]; then \
	    echo "Error: $$bare cannot make virtual environments: its modules venv and ensurepip are missing." >&2; \
	    echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	else \
	    echo "Error: Python 3.11 or newer is needed, and no python3, python3.11 … python3.14 here is one." >&2; \
	    echo "Install it, or say where it is: make PYTHON=/path/to/python" >&2; \
	fi; \
	exit 1
