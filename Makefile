# Works in the active virtual environment; without one it makes and uses .venv.
PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN := $(VENV)/bin
WORKERS ?= 2
DEVICE ?= cpu

.PHONY: help setup check test effect docs pictures bench bench-all bench-gpu

help:
	@echo "setup      install the package, the tools and the documentation tools, at the tested versions"
	@echo "check      format, lint, types, import rules, tests and doctests: what a change must pass"
	@echo "test       units, contracts and doctests"
	@echo "effect     one test per method: it does what its paper claims, against a control"
	@echo "docs       build docs/_build/html; a warning is an error"
	@echo "pictures   run what the pages show and photograph it into docs/images: 10 minutes; needs Chromium"
	@echo "bench      one table of speed beside hand-written loops, on the CPU: about 20 minutes"
	@echo "bench-all  memory, start-up and the coverage of intervals as well"
	@echo "bench-gpu  the table on a CUDA device; its small form on the CPU where there is none"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

setup: | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,docs]'

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(WORKERS)

test:
	$(BIN)/pytest -n $(WORKERS)

effect:
	$(BIN)/pytest -n $(WORKERS) -m effect

docs:
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

pictures:
	$(BIN)/python docs/pictures.py

bench:
	$(BIN)/python -m benchmarks --device $(DEVICE)

bench-all:
	$(BIN)/python -m benchmarks --all --device $(DEVICE)

bench-gpu:
	$(BIN)/python -m benchmarks --device cuda --or-small
