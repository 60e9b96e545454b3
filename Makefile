# The verbs: demo · test · lint · types · check · coverage · golden · census · docs · hooks · format · clean · tools-samseg.
# PYTHON=python3.12 make demo   picks another Python.   JOBS=1 make test   runs one test at a time.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# One process a core; a file's tests stay together, they share what the first of them has made.
JOBS ?= auto
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadscope --no-loadscope-reorder
PYTHON_SAMSEG ?= python3.11

.PHONY: demo test lint types check coverage golden census docs hooks format clean tools-samseg

demo: $(VENV)/app
	$(BIN)/python -m brainseg_bids.cli.demo demo/bids
	$(BIN)/brainseg demo/bids demo/out participant --work-dir demo/work
	@echo "Open the report: $(CURDIR)/demo/out/sub-MNI152.html"

test: $(VENV)/test
	$(PYTEST)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test
	$(BIN)/python -m mypy

check: lint types test

coverage: $(VENV)/test
	$(PYTEST) --cov --cov-report=term --cov-report=html:coverage
	@echo "Open: $(CURDIR)/coverage/index.html"

# All that the app leaves on phantom heads; then: python -m benchmarks.golden compare BEFORE AFTER
golden: $(VENV)/test
	$(BIN)/python -m benchmarks.golden record golden/$$(git rev-parse --short HEAD)

# The code in numbers: size, long functions, circles, repetition. --names lists them.
census:
	$(PYTHON) -m benchmarks.census

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html
	@echo "Open: $(CURDIR)/docs/_build/html/index.html"

# The fast checks before each commit.
hooks: $(VENV)/test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pre-commit install

format: $(VENV)/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A PyTorch that is already in the environment is kept if its version fits the constraints.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "brainseg-bids needs Python 3.11 or newer, this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/app: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/test: $(VENV)/app
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	# Without its dependencies: see "nnunet" in pyproject.toml.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps dynamic-network-architectures
	@touch $@

$(VENV)/docs: $(VENV)/app
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# SAMSEG's wheels are for Python 3.9 to 3.11 and want an older numpy: it lives by itself, where
# brainseg finds it. Needs a C compiler and the headers of that Python.
tools-samseg: $(VENV)/bin/python
	$(PYTHON_SAMSEG) -m venv $(VENV)/tools/samseg
	$(VENV)/tools/samseg/bin/python -m pip install --quiet samseg==0.4a0
	@echo "SAMSEG: $(VENV)/tools/samseg/bin/run_samseg"

clean:
	rm -rf demo build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage* coverage golden
