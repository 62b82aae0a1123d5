# `make demo` and `make test` are all a new machine needs: Python 3.11+ with venv, and a package index.
PYTHON ?= python3
VENV ?= .venv
# A CPU build of torch where there is one; on a GPU machine: make demo TORCH=torch
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP) ## create .venv with the service, the Hugging Face backend and the development tools

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: setup ## serve the shipped pair and show the main job (DEMO_ONCE=1: stop at the end)
	$(BIN)/rl-onoff demo $(if $(DEMO_ONCE),--once)

test: setup ## run the tests
	$(BIN)/python -m pytest

check: setup ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure lookahead (minutes; see benchmarks/)
	$(BIN)/python -m benchmarks.lookahead

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
