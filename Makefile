# make run, make test: both set themselves up in .venv, once for each state of pyproject.toml and constraints.txt.

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.installed
PYTHON ?= # a Python to make .venv with; the first that fits where it is not given
ARGS ?= # of pytest, as in: make test ARGS="-k parquet -x"

PYTHONS = $(or $(strip $(PYTHON)),python3 python3.14 python3.13 python3.12 python3.11)
FITS = import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))

.DEFAULT_GOAL := help
.PHONY: help setup run test lint check docs gpu-check lock clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP) ## install Condense and everything it needs into .venv

$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
		found=; for python in $(PYTHONS); do \
			if "$$python" -c '$(FITS)' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "error: found no Python 3.11 or newer with its venv module; tried: $(PYTHONS)" >&2; \
			echo "  -> install python3.11 and python3.11-venv, or name one: make setup PYTHON=/path/to/python" >&2; \
			exit 2; \
		fi; \
		echo "making .venv with $$found"; "$$found" -m venv .venv; \
	fi
	@echo "installing into .venv: 7 GB the first time, most of it PyTorch's CUDA libraries"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup ## condense a real embedded dataset and say where everything is
	$(BIN)/condense run examples/quickstart.yaml

test: setup ## run the whole default test suite
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict -p condense -p cluster -p tuning

check: lint test ## what CI runs

docs: setup ## build the pages in docs/_build/html, with warnings as errors
	$(BIN)/python docs/generate_configuration.py
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html

gpu-check: setup ## the GPU tests and benchmarks in one table, under 20 minutes; DATA=FOLDER of Parquet files
	$(BIN)/python -m benchmarks gpu-check --out gpu-check.md $(if $(DATA),--data $(DATA))

lock: ## record the versions that .venv holds in constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
		$(BIN)/python -m pip freeze --all --exclude-editable | sed -e '/^pip==/d' -e '/@/d' -e 's/+.*//'; \
	} > .constraints.new
	@mv .constraints.new constraints.txt

clean: ## remove .venv and what tools left; never a result
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
