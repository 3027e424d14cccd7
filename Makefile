# Two commands are enough:  make demo  (install, then portraits from seeds)   make test  (install, then the quick checks)
.SHELLFLAGS := -euc
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
# The first of these that is Python 3.11, 3.12 or 3.13 (which mediapipe, for photos, does not support).
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	if $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null; \
	then echo $$python; break; fi; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

PYTEST := $(BIN)/python -m pytest -q --numprocesses 2 --dist worksteal
# Types and shapes of all arguments are checked at every call, which doubles the time of most tests.
comma := ,
TYPED := geometry media model data synthetic poses encoder training evaluation photos viewer
CHECK_TYPES := --jaxtyping-packages=$(subst $() ,$(comma),$(TYPED:%=portrait360.%)),tools,beartype.beartype

.PHONY: help demo test test-slow docs docs-check results clean

help:
	@echo "make demo        install into $(VENV), then make four portraits and a web page in out/demo"
	@echo "make test        install into $(VENV), then run the checks that are quick"
	@echo "make test-slow   install into $(VENV), then run the tests that are slow by nature"
	@echo "make docs        build the site in out/site"
	@echo "make docs-check  check prose, tables, links and commands of the documents"
	@echo "make results     rewrite the tables of README.md and docs from docs/measurements"
	@echo "make clean       remove $(VENV) and out"

demo: $(VENV)/.installed-demo
	$(BIN)/portrait360 generate --seeds 0-3 --out out/demo
	$(BIN)/portrait360 page --model --out out/demo/model.html

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo
	@$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-test
	@$(PYTEST) -m "not slow" $(CHECK_TYPES) $(addprefix tests/,data geometry kernels media model poses portrait)
	@$(PYTEST) -m slow $(CHECK_TYPES)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-check: $(VENV)/.installed-demo
	$(BIN)/python -m tools.docs_check

results: $(VENV)/.installed-demo
	$(BIN)/python -m tools.tables

clean:
	rm -rf $(VENV) out

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable ".[train,photos,faces,onnx,viewer,ray,dev]"
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable ".[docs]"
	@touch $@
