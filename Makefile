# `make demo` and `make test` are all the set-up: each makes its own .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# How much `make torture` does; CI runs the same code at a small size. KILLS: SIGKILLs of our processes in all.
SCHEDULES ?= 10000
KILLS ?= 1000
WAITING ?= 10000000
STREAMS ?= 10000
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

# The table of what was done goes to torture-out/; SPOOLAGENT_SEED repeats a run.
torture: $(STAMP)
	$(BIN)/python tests/torture.py --schedules $(SCHEDULES) --kills $(KILLS) --waiting $(WAITING) --streams $(STREAMS) --jobs $(JOBS)

# Breaks the product on purpose, in a copy, and expects the tests to notice each break: docs/mutations.md.
mutations: $(STAMP)
	$(BIN)/python tests/mutations/run.py --jobs $(JOBS)

clean:
	rm -rf $(VENV) build dist demo-out torture-out *.egg-info
