# make setup: a virtual environment in .venv with everything the tests need; make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := src tests bench examples changes
OLDEST := $(VENV)/oldest

.PHONY: setup check format lint types test test-oldest

setup:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 # first: an unpinned install can pull several GB of CUDA packages
	$(BIN)/python -m pip install --quiet -e '.[dev]'

check: lint types test

format:
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint:
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types:
	$(BIN)/mypy

# Two workers, whoever is idle takes tests from the other; tiny models run faster without threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test:
	$(PYTEST)

# The engine on the oldest transformers that pyproject.toml allows, laid over the environment without changing it.
test-oldest:
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLDEST) \
		'transformers==5.8.*' 'huggingface-hub>=1.5,<2' 'tokenizers>=0.22,<=0.23.0'
	PYTHONPATH=$(OLDEST) $(BIN)/python -c 'import transformers; print("transformers", transformers.__version__)'
	PYTHONPATH=$(OLDEST) $(PYTEST) tests/hf
