# `make demo` and `make test` are all the set-up: each makes its own .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# How much `make torture` does; CI runs the same code at a small size.
KILLS ?= 1000
SCHEDULES ?= 10000
JOBS ?= 2

.PHONY: demo test lint bench torture mutations clean

$(STAMP): pyproject.toml tools/setup.sh
	sh tools/setup.sh "$(PYTHON)" "$(VENV)"
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/spoolagent demo --out demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks

torture: $(STAMP)
	SPOOLAGENT_KILLS=$(KILLS) SPOOLAGENT_SCHEDULES=$(SCHEDULES) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --timeout 0 -m "kill or schedules"

# Breaks the product on purpose, in a copy, and expects the tests to notice each break: docs/mutations.md.
mutations: $(STAMP)
	$(BIN)/python tests/mutations/run.py --jobs $(JOBS)

clean:
	rm -rf $(VENV) build dist demo-out *.egg-info
