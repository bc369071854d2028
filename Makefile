# Two commands for a fresh machine: `make up` (sets up and runs) and `make test` (sets up and tests).
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DONE    = $(VENV)/.installed

.PHONY: up test test-slow check bench docs proto compatibility clean

up: $(DONE)
	@exec $(BIN)/modelmill up --demo

test: $(DONE)
	$(BIN)/python -m pytest

test-slow: $(DONE)
	$(BIN)/python -m pytest -m slow -n 0

check: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/generate.py --check

bench: $(DONE)
	$(BIN)/python -m bench.run

docs: $(DONE)
	$(BIN)/python docs/generate.py

proto: $(DONE)
	$(BIN)/python -m grpc_tools.protoc -I src --descriptor_set_out=src/modelmill/protocols/v2/grpc/proto/descriptors.binpb \
	  src/modelmill/protocols/v2/grpc/proto/*.proto

compatibility: $(DONE)
	$(BIN)/python -m tests.kit

$(DONE): pyproject.toml constraints.txt
	@echo "setting up $(VENV) with the tested set of packages (a few minutes the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,otel,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
