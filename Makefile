# make demo       see it work: synthetic data, whole pipeline, a picture
# make test       lint, types and the tests for every day, on two cores in three minutes
# make test-all   these, the thorough ones and those of the whole pipeline
# make clean      remove what the above wrote; workspaces stay
#
# DATA=DIR          folder of real datasets; tests that need them skip where it is not given
# PYTEST_ARGS=...   passed on, e.g. PYTEST_ARGS="tests/planning/test_plan.py -x"
# WORKERS=N         processes that run tests side by side (default: one for each core, 8 at most)

PYTHON ?= python3
DATA ?=
PYTEST_ARGS ?=
WORKERS ?= logical
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST := $(BIN)/python -m pytest $(if $(DATA),"--data=$(DATA)")
SIDE_BY_SIDE := -n $(WORKERS) --maxprocesses=8 --dist=loadfile
# Rewriting the assertions of all tests takes longer than importing them, and is done once if its result may be kept.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: .venv demo test lint types test-all clean

.venv: $(INSTALLED)

# The stamp is written last: an interrupted installation is done again.
$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "autoseg needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
		echo "  -> name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: .venv
	$(BIN)/autoseg demo

test: lint types
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not thorough and not gpu" $(PYTEST_ARGS)

test-all: test
	$(PYTEST) $(SIDE_BY_SIDE) -m "thorough and not slow and not gpu" $(PYTEST_ARGS)
	$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS)

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis autoseg_demo
	find . -name __pycache__ -prune -exec rm -rf {} +
