# make setup   the environment in .venv (about 5 GB, most of it torch)
# make demo    both phases on real handwritten digits, then a small table
# make test    lint and all tests
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.ready

.PHONY: setup demo test lint
setup: $(READY)

$(READY): requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q -r requirements-dev.txt -c constraints.txt
	touch $(READY)

demo: setup
	PYTHON=$(VENV)/bin/python scripts/demo.sh

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	$(VENV)/bin/python -m pytest -q -n 2 --dist worksteal
