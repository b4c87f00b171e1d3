# Every target does its own set-up; `make` alone says what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint types bench bench-local simulate chaos terraform cold-start pins clean
help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[local,dev]'
	@touch $@

demo: $(INSTALLED) ## thousands of URLs through the whole thing, on this machine (INPUT=urls.txt)
	@exec $(BIN)/python -m examples.demo $(if $(INPUT),--input '$(INPUT)')

test: $(INSTALLED) ## all tests, two at a time, but those of `make terraform`
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/terraform

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

bench: $(INSTALLED) ## the measurements of docs/performance.md
	@exec $(BIN)/python -m benchmarks

simulate: $(INSTALLED) ## worlds where everything goes wrong (SEEDS=1000; SEED=17 for one and its schedule)
	@exec $(BIN)/python -m forkjoin_gcp.testing.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

chaos: $(INSTALLED) ## kill and stop real processes while items flow, and count (SECONDS=120 RATE=600 SEED=)
	@exec $(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(RATE),--rate $(RATE)) $(if $(SEED),--seed $(SEED))

bench-local: $(INSTALLED) ## the measurements of the local services, in docs/performance.md
	@exec $(BIN)/python -m benchmarks --local

terraform: $(INSTALLED) ## format, validate, test and scan terraform/, and hold it to the code
	@exec $(BIN)/python -m tests.terraform

cold-start: $(INSTALLED) ## how long an instance of the join function takes to work (docs/operations.md)
	@exec $(BIN)/python -m benchmarks.cold_start

pins: ## functions/requirements.txt anew, at the newest versions
	rm -rf build/pins && $(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet .
	{ grep '^#' functions/requirements.txt; build/pins/bin/python -m pip list --format=freeze | grep '^forkjoin'; \
	  build/pins/bin/python -m pip freeze --exclude forkjoin-gcp; } > build/pins.txt
	mv build/pins.txt functions/requirements.txt

clean: ## what the other targets made
	rm -rf $(VENV) .venv-terraform build dist *.egg-info demo-output .mypy_cache .ruff_cache .pytest_cache
