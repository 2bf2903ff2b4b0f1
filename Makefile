# `make train` and `make test` do all their own set-up. DATA= points at your images, ARGS= adds flags.
PYTHON ?= python3
DATA ?=
ARGS ?=
BIN := .venv/bin
# LOCKED=1 installs what requirements-lock.txt pins, compared by SHA-256; otherwise the newest versions in the ranges.
LOCKED ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := --require-hashes -r requirements-lock.txt

.PHONY: train test lint full-test mutants docs cuda-dry frontier gpu clean

train: .venv/.train
	$(BIN)/python train_fast.py --epochs 30 $(if $(DATA),--data $(DATA)) $(ARGS)

test: .venv/.dev lint
	$(BIN)/python -m pytest -n auto --dist loadgroup --timeout 300

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

full-test: .venv/.dev lint
	FASTCIFAR_FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest -m "" --timeout 3600

# Puts each fault of tests/mutants/faults into a copy of the tree: some test must see it. All take an hour of one core.
mutants: .venv/.dev
	$(BIN)/python tests/mutants/run_mutants.py $(ARGS)

# The site in build/site, from these pages in the layout of the repository; any warning is an error.
PAGES := $(wildcard *.md) LICENSE bench/README.md $(shell find docs -type f)
docs: .venv/.dev
	rm -rf build/docs build/site
	mkdir -p build/docs
	cp --parents $(PAGES) build/docs
	$(BIN)/zensical build --strict --clean

# The CUDA path without a card, on a stub of the CUDA runtime (tests/cuda_stub): in `make test` too, here alone.
cuda-dry: .venv/.dev
	$(BIN)/python -m pytest tests/cuda_stub --timeout 300 $(ARGS)

# The pictures of the README, from the raw runs in records/.
frontier: .venv/.train
	$(BIN)/python -m bench.frontier $(ARGS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.train: requirements.txt requirements-base.txt | .venv/bin/python
	$(PIP) $(if $(LOCKED),$(LOCK),-r requirements.txt)
	@touch $@

.venv/.dev: requirements-dev.txt requirements-docs.txt requirements-lock.txt .venv/.train
	$(PIP) $(if $(LOCKED),$(LOCK),-r requirements-dev.txt)
	@touch $@

# On the machine with the card, without an environment of its own where there is none: make gpu OUT=DIR PYTHON=python3
OUT := bench-results/gpu
BUDGET_S ?= 540
PEERS ?=
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu --out $(OUT) --budget-s $(BUDGET_S) \
		$(if $(DATA),--data $(DATA)) $(if $(PEERS),--peers $(PEERS)) $(ARGS)

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis
