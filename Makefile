# make demo       see it work: synthetic data, whole pipeline, a picture
# make test       lint, types and every test that takes seconds
# make test-slow  tests of the whole pipeline
# make clean      remove what the above wrote; workspaces stay
#
# DATA=DIR          folder of real datasets; tests that need them skip where it is not given
# PYTEST_ARGS=...   passed on, e.g. PYTEST_ARGS="tests/planning/test_plan.py -x"

PYTHON ?= python3
DATA ?=
PYTEST_ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/installed
PYTEST := $(BIN)/python -m pytest $(if $(DATA),"--data=$(DATA)")

.PHONY: .venv demo test lint types test-slow clean

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
	$(PYTEST) -m "not slow and not gpu" $(PYTEST_ARGS)

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv
	$(BIN)/mypy

test-slow: .venv
	$(PYTEST) -m slow $(PYTEST_ARGS)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis autoseg_demo
	find . -name __pycache__ -prune -exec rm -rf {} +
