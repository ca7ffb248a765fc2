# `make demo` and `make test` do all the set-up a fresh machine needs. VENV=DIR chooses another environment, PYTHON=... the
# interpreter that creates it, ARGS=... adds arguments to pytest or to the demo.
VENV ?= .venv
BIN := $(VENV)/bin
# Named after the contents of pyproject.toml, so that touching or cloning the file doesn't install again and changing it does.
FINGERPRINT := $(shell cksum < pyproject.toml | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(FINGERPRINT)
BENCH_STAMP := $(VENV)/.bench-$(FINGERPRINT)
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help setup demo test test-pages lint format bench coverage-matrix docs docs-methods docs-notebook docs-evidence

help:
	@echo "make demo   install if needed, then prune a trained network end to end"
	@echo "make test   install if needed, then run the tests (ARGS='-k name' to choose, ARGS='-m slow' for the slow ones)"
	@echo "make test-pages  run the code and the commands of README, how-to pages, tutorials and notebook"
	@echo "make lint   ruff, the formatter's check, pyright strict on src/"
	@echo "make format let ruff mend what it can"
	@echo "make bench  run every file of benchmarks/ (hours; single claims: prunus benchmark NAME)"
	@echo "make coverage-matrix  prune every network of torchvision and timm's families, write docs/coverage.md (hours; goes on)"
	@echo "make docs   build the documentation into site/, strictly: a link that leads nowhere ends it"
	@echo "make docs-methods  write docs/methods/, a page for every criterion, from docstrings and measurements"
	@echo "make docs-notebook  run docs/notebook/ and write what it prints into it"
	@echo "make docs-evidence  write docs/evidence.md and docs/choose.md from the claims and figures of benchmarks/"
	@echo "make setup  only install, into $(VENV)"

setup: $(STAMP)

$(VENV)/bin/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	        echo "Creating $(VENV) with $$("$$python" --version)"; \
	        exec "$$python" -m venv --clear "$(VENV)"; \
	    fi; \
	done; \
	echo "Prunus needs Python 3.10 or newer with the venv module, and found none. Install one" >&2; \
	echo "(Debian, Ubuntu: apt-get install python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1

$(STAMP): | $(VENV)/bin/python
	@echo "Installing Prunus and what it needs into $(VENV); PyTorch is large, so this takes a few minutes, once"
	@$(PIP) install --no-compile -e ".[dev]"
	@rm -f $(VENV)/.installed-* && touch $@

$(BENCH_STAMP): $(STAMP)
	@echo "Installing the libraries that the benchmarks compare with"
	@$(PIP) install --no-compile -e ".[dev,bench]"
	@rm -f $(VENV)/.bench-* && touch $@

demo: $(STAMP)
	@$(BIN)/prunus demo $(ARGS)

# Two processes of one torch thread each (tests/conftest.py); one file stays in one process, so that its fixtures run once.
test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# By test, not by file: a page is a test, and most stand in one file.
test-pages: $(STAMP)
	@$(BIN)/python -m pytest -n 2 -m "pages and not slow" $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(BENCH_STAMP)
	@for file in benchmarks/[!_]*.py; do echo "== $$file"; $(BIN)/python "$$file" || left="$$left $$file"; done; \
	test -z "$$left" || { echo "not run to the end, for most of these want data (--help says which):$$left"; exit 1; }

# Goes on where it was stopped; ARGS='--only "timm:res*" --jobs 4' to choose.
coverage-matrix: $(BENCH_STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/coverage.py $(ARGS)

docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q && echo "open site/index.html"

# After a change of a criterion's docstring, options or measured figures; a test compares.
docs-methods: $(STAMP)
	@$(BIN)/python docs/make_methods.py

# After a change of a cell, or of what Prunus prints in one.
docs-notebook: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python docs/run_notebook.py

# After a change of a claim or of a result; a test compares.
docs-evidence: $(STAMP)
	@$(BIN)/python docs/make_evidence.py
	@$(BIN)/python docs/make_choose.py
