# Everything a newcomer needs: `make demo`, `make test`. PYTHON and VENV may be overridden.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo

.PHONY: demo test test-all lint bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install -e .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install -e ".[dev]"
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## pretrain on phantoms, probe the result against the untrained net
	rm -rf $(DEMO)
	$(BIN)/ssl-mednet pretrain --recipe mae_gray.yaml --out $(DEMO)
	$(BIN)/ssl-mednet evaluate --suite demo.yaml --weights $(DEMO) random: --out $(DEMO)/results
	@echo
	@echo "The backbone is in $(DEMO)/backbone; reconstructions in $(DEMO)/pictures/reconstruction.png."
	@echo "Next: your own images,  $(BIN)/ssl-mednet pretrain --recipe simclr_gray.yaml --data FOLDER_OR_ZIP"
	@echo "      other objectives, $(BIN)/ssl-mednet list recipes"

test: $(VENV)/.installed-dev  ## all tests but the long experiments, a process a core
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	for script in tests/benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf build dist runs results .pytest_cache .mypy_cache .ruff_cache
