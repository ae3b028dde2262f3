# Espalier's commands. `make` lists them.
#
#   make demo          the whole flow on a real data set, from a bare checkout
#   make test-faults   kill, tear, fill and corrupt everything, then count what was lost
#   make test          lint, types, import contracts and the fast tests
#
# Variables:
#   PYTHON=python3.12  which interpreter makes the virtual environment (default: the first of 3.11 or newer found)
#   TORCH_INDEX=URL    where the torch wheel comes from, torch alone; unset: wherever pip is configured to look.
#                      CPU only (small):  TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                      CUDA 13.0:         TORCH_INDEX=https://download.pytorch.org/whl/cu130
#   VENV=.venv         where the virtual environment lives

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=

# Tools that are installed apart, where a command needs them.
UV_VERSION := 0.13.9
PIP_AUDIT_VERSION := 2.10.1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help setup demo serve check format test test-slow test-all test-faults bench docs reference lock audit sbom clean distclean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install both packages, editable, within constraints.txt

$(STAMP): pyproject.toml client/pyproject.toml constraints.txt
	@python="$(PYTHON)"; \
	usable() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if [ -z "$$python" ]; then \
	  for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	    if usable "$$candidate"; then python=$$candidate; break; fi; \
	  done; \
	fi; \
	if [ -z "$$python" ] || ! usable "$$python"; then \
	  echo "Espalier needs Python 3.11 or newer with the venv module$${python:+; $$python is not that}." >&2; \
	  echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ] || ! $(BIN)/python -c 'import pip' 2>/dev/null; then \
	  echo "making $(VENV) with $$python ($$("$$python" -c 'import platform; print(platform.python_version())'))"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "installing (the first time downloads torch: minutes)"
	@if [ -n "$(TORCH_INDEX)" ]; then \
	  $(PIP) install --quiet --no-deps --index-url "$(TORCH_INDEX)" --constraint constraints.txt torch; \
	fi
	@$(PIP) install --quiet --constraint constraints.txt --editable ./client --editable '.[dev]'
	@touch $@
	@rm -f $(DOCS_STAMP)

$(DOCS_STAMP): $(STAMP)
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

demo: $(STAMP) ## Upload, train and prune, download, roll back, on a real data set
	@$(BIN)/espalier demo

serve: $(STAMP) ## Run the service with its worker on http://127.0.0.1:8000
	@$(BIN)/espalier serve

check: $(STAMP) ## Lint, format, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Format the code and fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: check ## check, then the fast tests
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: check ## check, then all tests
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-slow: $(STAMP) ## What `make test` leaves out, but for the fault suite
	@$(BIN)/python -m pytest -m "slow and not faults" $(PYTEST_ARGS)

test-faults: $(STAMP) ## The whole fault suite, with its table; also build/faults.json
	@ESPALIER_FAULTS_JSON=build/faults.json $(BIN)/python -m pytest -m faults $(PYTEST_ARGS) tests/faults

bench: $(STAMP) ## Run every benchmark and print it beside its target
	@$(BIN)/python -m benchmarks

reference: $(STAMP) ## Regenerate the pages of docs/ that come from the code
	@$(BIN)/python docs/generate.py

lock: $(STAMP) ## Make requirements.lock anew from constraints.txt: versions with their hashes
	@$(BIN)/python -m venv build/lock && build/lock/bin/pip install --quiet uv==$(UV_VERSION)
	@build/lock/bin/python deploy/lock.py build/lock/bin/uv
	@echo "requirements.lock"

audit: $(STAMP) ## Ask pip-audit for known weaknesses of what is locked, and of torch
	@$(BIN)/python -m venv build/audit && build/audit/bin/pip install --quiet pip-audit==$(PIP_AUDIT_VERSION)
	@build/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock
	@grep '^torch==' constraints.txt > build/torch.txt
	@build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement build/torch.txt

sbom: $(STAMP) ## List what is installed in .venv as CycloneDX: build/sbom.cdx.json
	@mkdir -p build
	@$(BIN)/python deploy/sbom.py > build/sbom.cdx.json
	@echo "build/sbom.cdx.json"

docs: $(DOCS_STAMP) ## Build the documentation into site/, strictly
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python -m mkdocs build --strict
	@echo "site/index.html"

clean: ## Remove what tools left behind; keeps .venv and data
	@rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean ## clean, and remove .venv too
	@rm -rf $(VENV)
