# make demo: environment, demo dataset, participant and group level, path of the report.
# Again: what is there is kept; where the dataset was interrupted, make clean first.
# make test: everything that guards the project.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Whichever build of torch the package index offers, usually the CUDA build; another one, if the index has it:
# make TORCH=torch==2.13.0+cpu …
TORCH ?= torch==2.13.0

.PHONY: demo test test-slow lint types unit environment clean

environment: $(BIN)/.complete

$(BIN)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[train,test]"
	touch $@

demo: environment
	test -e $(DEMO)/.complete || $(BIN)/scseg demo $(DEMO)/bids --subjects 3 --seed 0
	touch $(DEMO)/.complete
	$(BIN)/bids_scseg $(DEMO)/bids $(DEMO)/out participant
	$(BIN)/bids_scseg $(DEMO)/bids $(DEMO)/out group
	@echo "Group page:      $(abspath $(DEMO)/out/group.html)"
	@echo "Session reports: $(abspath $(DEMO)/out)/sub-*.html"

test: environment lint types unit

lint: environment
	$(BIN)/ruff check bids_scseg workflows tests benchmarks mkdocs_hooks.py
	$(BIN)/ruff format --check bids_scseg workflows tests benchmarks mkdocs_hooks.py
	$(BIN)/codespell bids_scseg workflows tests benchmarks docs README.md CHANGELOG.md
	$(BIN)/lint-imports

types: environment
	$(BIN)/mypy

unit: environment
	$(BIN)/python -m pytest -q

test-slow: environment
	$(BIN)/python -m pytest -q -m slow

clean:
	rm -rf $(DEMO) build dist *.egg-info
