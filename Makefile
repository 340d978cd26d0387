# make demo   a picture and a table: rare prompts on the bundled model, untouched and lifted
# make test   ruff, mypy and every test; what CI runs
# Both make .venv first. PYTHON=python3.12 chooses the interpreter, PYTEST_ARGS='-m "not slow" -x' goes to pytest.

PYTHON ?= python3
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# one place holds the version of torch; a wheel may call itself 2.13.0+cpu and still be that version
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/torch==\1/p' constraints.txt)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint venv clean

help:
	@sed -n 's/^# //p' Makefile | head -3

venv: $(STAMP)

# torch comes first and alone, at its exact version: that takes a local CPU wheel where pip is told of one, while a
# looser requirement would fetch the newest build with its CUDA packages
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rarelift needs Python 3.10 or newer, $(PYTHON) is %d.%d; try make PYTHON=python3.12" % sys.version_info[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "installing into $(VENV): minutes the first time, seconds later"
	@$(PIP) install "$(TORCH)"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# Measured: glibc's allocator gives memory back to the system after each step and faults it in again at the next, which
# makes torch on a CPU up to 20 times slower. These keep it.
demo test: export MALLOC_MMAP_MAX_ = 0
demo test: export MALLOC_TRIM_THRESHOLD_ = 100000000000
demo test: export MALLOC_TOP_PAD_ = 500000000

demo: $(STAMP)
	@$(BIN)/rarelift demo --out demo.png

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff .; exit 1; }
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo.png
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
