# Everything a contributor types. The two commands that matter: make demo, make test.

PYTHON ?= python3
VENV ?= .venv
# The CPU build is pinned: an open range may pull gigabytes of CUDA packages. Override: make install TORCH="torch>=2.6"
TORCH ?= torch==2.13.0

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-gpu lint format bench reference package

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(BIN)/.installed-dev: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev,triton]"
	@touch $@

install: $(BIN)/.installed ## make .venv and install gptcli into it

demo: install ## train a small model on the bundled story and generate text with it (two minutes)
	$(BIN)/gptcli train data/story.txt --for 90s --out checkpoints/demo --force
	$(BIN)/gptcli generate "When the bell rings" --checkpoint checkpoints/demo --temperature 0.7 --seed 1

test: $(BIN)/.installed-dev ## run the tests (a few minutes)
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: $(BIN)/.installed-dev ## run the slow tests: big models, long runs
	$(BIN)/python -m pytest -m slow

test-gpu: ## run the GPU tests with the Python that is given and what it has: make test-gpu PYTHON=python3.12
	PYTHONPATH=. $(PYTHON) -m pytest -m gpu

lint: $(BIN)/.installed-dev ## ruff, mypy --strict and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(BIN)/.installed-dev ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BIN)/.installed-dev ## measure this machine's limits and the code against them
	$(BIN)/gptcli bench --size small

reference: $(BIN)/.installed ## write the guide's page of every command, and the screens that tests compare with --help
	$(BIN)/python -c "from gptcli.cli.reference import page; print(page(), end='')" > gptcli/guide/commands.md
	PYTHONPATH=. $(BIN)/python tests/help_screens.py

package: ## build the wheel and the source archive into dist/
	$(PYTHON) -m venv $(VENV)/build
	$(VENV)/build/$(notdir $(BIN))/python -m pip install --quiet build
	$(VENV)/build/$(notdir $(BIN))/python -m build
