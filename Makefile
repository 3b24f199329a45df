# Works in the active virtual environment; without one it makes and uses .venv.
PYTHON ?= python3
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),$(CURDIR)/.venv)
BIN := $(VENV)/bin
WORKERS ?= 2
DEVICE ?= cpu

.PHONY: help setup check test effect docs bench bench-gpu

help:
	@echo "setup      install the package, the tools and the documentation tools, at the tested versions"
	@echo "check      format, lint, types, import rules, tests and doctests: what a change must pass"
	@echo "test       units, contracts and doctests"
	@echo "effect     one test per method: it does what its paper claims, against a control"
	@echo "docs       build docs/_build/html; a warning is an error"
	@echo "bench      speed and memory beside hand-written loops, on the CPU"
	@echo "bench-gpu  the same on a CUDA device"

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

bench:
	$(BIN)/python -m benchmarks --device $(DEVICE)

bench-gpu:
	$(MAKE) bench DEVICE=cuda
