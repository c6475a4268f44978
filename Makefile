# Everything happens in .venv; `make clean` removes it again. Override with e.g. `make test PYTHON=python3.12`.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
FUZZ_SECONDS ?= 600
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# One thread each: two threads on a busy machine can be ten times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test lint format docs clean fuzz
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(READY)  ## compress the digits network at three rates; files, a picture and a report in demo-out/
	$(BIN)/python examples/demo.py

test: $(READY)  ## run all tests
	$(BIN)/python -m pytest -n auto

lint: $(READY)  ## check style (ruff) and types (mypy --strict)
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## sort imports and apply ruff's safe fixes
	$(BIN)/ruff check --fix .

docs: $(READY)  ## build the documentation site in site/
	$(BIN)/zensical build --strict

fuzz: $(READY)  ## fuzz the decoders (needs clang++; FUZZ_SECONDS for each of seven targets)
	$(MAKE) -C fuzz run SECONDS=$(FUZZ_SECONDS)
	$(BIN)/python fuzz/files.py --seconds $(FUZZ_SECONDS) --seed $$(date +%s) --out fuzz/build/findings

clean:  ## remove .venv and everything that was built
	rm -rf $(VENV) build dist demo-out site .cache src/*.egg-info src/tersor/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by its exact version: an open range can pull in gigabytes of GPU libraries.
# Installed in place, so that edits under src/ count at once; native code is built again when it changes.
$(READY): pyproject.toml setup.py $(wildcard native/*.cpp native/*.h)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[torch,dev]"
	touch $@
