# Every target sets up what it needs: a virtual environment in the checkout (or the active one, or VENV=path).
PYTHON ?= python3
VENV ?= $(or $(VIRTUAL_ENV),.venv)
WORKERS ?= 2
STAMP := $(VENV)/.mtyolo-installed
BIN := $(VENV)/bin

.PHONY: demo test lint install

demo: $(STAMP)
	$(BIN)/mtyolo demo

# One thread a process, as many processes as cores are asked for: small networks gain nothing from more threads. They take
# whole files in the order of tests/conftest.py; xdist's own, by the number of tests, leaves the slowest to the end.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mtyolo needs Python 3.10 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
