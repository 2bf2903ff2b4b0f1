# `make train` and `make test` do all their own set-up. DATA= points at your images, ARGS= adds flags.
PYTHON ?= python3
DATA ?=
ARGS ?=
BIN := .venv/bin

.PHONY: train test lint full-test clean

train: .venv/.train
	$(BIN)/python train_fast.py --epochs 30 $(if $(DATA),--data $(DATA)) $(ARGS)

test: .venv/.dev lint
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

full-test: .venv/.dev lint
	FASTCIFAR_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest -m "" --timeout 3600

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.train: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt .venv/.train
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
