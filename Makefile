# make            lists the targets
# make demo       from a fresh clone to a fitted posterior, with nothing but Python 3.11 on the machine

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check lint format types bench reproduce docs clean

PYTHON ?= python3.11 python3 python3.12 python3.13
BIN := .venv/bin
STAMP := .venv/.setup-done
ARGS ?=

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## create .venv with the library, all extras and the development tools

# The first interpreter of PYTHON that runs and is new enough; again only when what it installs has changed.
$(STAMP): pyproject.toml constraints.txt
	@python=""; \
	for candidate in $(PYTHON); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "tightbound needs Python 3.11 or newer; none of these is one: $(PYTHON)." >&2; \
	  echo "Install Python 3.11, or say where it is: make setup PYTHON=path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	echo "setup: creating .venv with $$("$$python" --version)"; \
	"$$python" -m venv .venv || { \
	  echo "$$python could not create .venv; on Debian and Ubuntu install the package python3-venv." >&2; exit 1; }
	@echo "setup: installing tightbound with all extras (minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

demo: setup ## fit three posteriors and write their reports to build/demo (FAST=1: shorter)
	@$(BIN)/python examples/demo.py --out build/demo $(if $(FAST),--fast) $(ARGS)

test: setup ## run the tests that take at most some seconds each: under twenty minutes
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not slow' $(ARGS)

test-slow: setup ## run the tests that are marked slow: ten minutes
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m slow $(ARGS)

check: setup ## lint, types, architecture and the unit tests that are quick: under four minutes
	@$(MAKE) --no-print-directory lint types
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -q -m 'not slow' \
	  tests/test_architecture.py tests/test_complete.py tests/test_constants.py tests/test_duplicates.py \
	  tests/test_homes.py tests/test_loop.py tests/test_map.py tests/test_numerics.py tests/test_signatures.py \
	  tests/families tests/objectives tests/search tests/targets \
	  --ignore tests/search/test_conjugate_form.py --ignore tests/targets/test_numpyro_model.py # the longest

lint: setup ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup ## check the types of src
	@$(BIN)/pyright

bench: setup ## run tightbound against its peers (ARGS=... goes to benchmarks/peers.py)
	@$(BIN)/python benchmarks/peers.py $(ARGS)

reproduce: setup ## rerun one published table or figure: NAME=...
	@if [ -z "$(NAME)" ]; then echo "Reproduce what? make reproduce NAME=name; $(BIN)/tightbound list shows the names." >&2; exit 2; fi
	@$(BIN)/tightbound reproduce $(NAME) $(ARGS)

docs: setup ## check the docs (links, public names) and render them to build/docs
	@$(BIN)/python docs/build.py --out build/docs

clean: ## remove what builds and tests leave behind (.venv stays)
	@rm -rf build dist .pytest_cache .ruff_cache src/*.egg-info
	@find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
