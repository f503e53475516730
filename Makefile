# make setup   the environment in .venv (about 5 GB, most of it PyTorch)
# make demo    both phases on real handwritten digits, then a small table
# make check   lint and the fast tests, about a minute: before every commit
# make test    lint and all tests, some minutes: before every merge
# make lint    style, import direction and types
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.ready
PYTEST = $(VENV)/bin/python -m pytest -q -n 2 --dist worksteal

.PHONY: setup demo lint check test
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
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/mypy

check: lint
	$(PYTEST) -m "not slow and not gpu"

test: lint
	$(PYTEST)
