# make setup: a virtual environment in .venv with everything the tests need; make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup check format lint types test

setup:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0 # first: an unpinned install can pull several GB of CUDA packages
	$(BIN)/python -m pip install --quiet -e '.[dev]'

check: lint types test

format:
	$(BIN)/ruff format src tests bench examples
	$(BIN)/ruff check --fix src tests bench examples

lint:
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/ruff check src tests bench examples

types:
	$(BIN)/mypy

test:
	$(BIN)/pytest
