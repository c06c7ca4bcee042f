# Each target sets up what it needs; a second run starts at once.
#
# TORCH says which torch to use, as arguments to `uv pip install`; by default the pinned one.
#   make test TORCH='/wheels/torch-2.15.0-cp311-cp311-linux_x86_64.whl'

PYTHON ?= python3
TORCH ?=
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
UV_VERSION := 0.13.9

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

.DEFAULT_GOAL := help
.PHONY: help demo test lint stubs bench docs pins clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMPS)/built ## Train a small family, calibrate, merge in every way, compare
	$(BIN)/sensmerge demo demo

test: lint ## Lint, then run the tests of both languages
	cargo test --release --workspace
	$(BIN)/python -m pytest

lint: $(STAMPS)/built ## Formatting, clippy, ruff, mypy, stubs
	scripts/lint

stubs: $(STAMPS)/tools ## Write python/sensmerge/_core.pyi from the Rust sources
	scripts/stubs python/sensmerge/_core.pyi

bench: $(STAMPS)/built ## Every method: seconds, ratio to reading and writing, peak memory
	$(BIN)/python benches/methods.py

docs: ## The core's API documentation
	cargo doc -p sensmerge-core --no-deps

pins: $(STAMPS)/uv ## Resolve the pinned versions anew
	scripts/pins

clean: ## Remove what the targets made
	rm -rf $(VENV) target demo python/sensmerge/*.so

$(STAMPS)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	mkdir -p $(STAMPS)
	touch $@

# Torch stands apart, so that TORCH can take its place.
$(STAMPS)/tools: $(STAMPS)/uv constraints/tools.txt constraints/torch.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r constraints/tools.txt
ifeq ($(TORCH),)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r constraints/torch.txt
else
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(TORCH)
endif
	touch $@

$(STAMPS)/built: $(STAMPS)/tools $(RUST_SOURCES) pyproject.toml
	PATH=$(CURDIR)/$(BIN):$$PATH VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --uv --quiet
	touch $@
