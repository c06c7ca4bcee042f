# Each target sets up what it needs; a second run starts at once.
#
#   PYTHON  the interpreter to start from, 3.11 or newer
#   TORCH   the torch to install, as arguments of `uv pip install`, instead of the pinned one:
#           make test TORCH='torch==2.15.0+cpu --index-url ADDRESS'
#           make test TORCH=wheels/torch-2.15.0-cp311-cp311-linux_x86_64.whl

PYTHON ?= python3
TORCH ?=

BIN := .venv/bin
STAMPS := .venv/stamps
RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
UV := $(BIN)/uv pip --quiet

# What runs below sees this environment and nothing of the caller's.
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: help demo test torture lint instructions stubs bench docs pins clean force

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(STAMPS)/built ## Train a small family of models, calibrate, merge in every way, compare
	$(BIN)/sensmerge demo demo

test: lint instructions ## Lint, count instructions, run the tests of both languages
	cargo test --quiet --profile checked --locked --workspace
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

torture: $(STAMPS)/built ## The long tests, and those of faults with many more cases
	SENSMERGE_TORTURE=1 $(BIN)/python -m pytest -m 'torture or tiers'

lint: $(STAMPS)/built ## Formatting, clippy, ruff, mypy, type stubs
	scripts/lint

instructions: $(STAMPS)/uv ## Instructions of every kernel, compared with benches/records
	$(BIN)/python scripts/instructions.py

stubs: $(STAMPS)/built ## Write python/sensmerge/_core.pyi from the Rust sources
	$(BIN)/python scripts/stubs.py

bench: $(STAMPS)/built ## Every method: seconds, ratio to what the machine allows, peak memory
	$(BIN)/python benches/merge.py

docs: $(STAMPS)/docs $(STAMPS)/built ## The site of the documentation, into site/
	$(BIN)/python scripts/website.py

pins: $(STAMPS)/uv ## Resolve the pinned versions anew, into constraints/
	$(BIN)/python scripts/pins.py

clean: ## Remove what the other targets made
	rm -rf .venv target demo dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f python/sensmerge/_core.*so python/sensmerge/_core.*pyd

$(STAMPS)/uv: constraints/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + \
		"; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@mkdir -p $(STAMPS) && touch $@

# Apart from the packages of the tests, of which Sphinx needs other versions.
$(STAMPS)/docs: $(STAMPS)/uv constraints/docs.txt
	rm -rf .venv/docs
	$(UV) install --target .venv/docs --require-hashes -r constraints/docs.txt
	@touch $@

# Rewritten only when TORCH is another than last time.
$(STAMPS)/torch: $(STAMPS)/uv force
	@printf '%s\n' "$(TORCH)" | cmp -s - $@ || printf '%s\n' "$(TORCH)" > $@

# `sync` also takes away what is no longer named, such as the CUDA packages of another torch.
$(STAMPS)/tools: $(STAMPS)/torch constraints/tools.txt constraints/torch.txt
ifeq ($(strip $(TORCH)),)
	$(UV) sync --require-hashes --reinstall-package torch \
		constraints/uv.txt constraints/tools.txt constraints/torch.txt
else
	$(UV) sync --require-hashes constraints/uv.txt constraints/tools.txt
	$(UV) install $(TORCH)
endif
	@touch $@

$(STAMPS)/built: $(STAMPS)/tools $(RUST) pyproject.toml
	$(BIN)/maturin develop --quiet --release --locked --uv
	@touch $@
