# Every target sets itself up: a fresh clone needs Python 3.11 or newer and nothing else. The second time is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check wheel lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

demo: $(VENV)/.demo  ## watch chains and a query engine answer through the bundled models
	$(BIN)/confcascade demo

test: $(VENV)/.dev check  ## lint, types, import rules, all tests, the built wheel
	$(BIN)/pytest -n 2

check: $(VENV)/.dev  ## lint, format, types and import rules only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

wheel: $(VENV)/.dev  ## dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# pip's own index settings are handed on, because uv does not read them
lock: $(VENV)/.dev  ## resolve constraints.txt anew (torch stays at the version named here)
	echo "torch==2.13.0" > $(VENV)/torch.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --quiet --upgrade --override $(VENV)/torch.txt \
		--python-version 3.11 --index-strategy unsafe-best-match \
		--no-annotate --no-header --no-emit-index-url --no-emit-find-links \
		$$($(BIN)/pip config get global.find-links 2>/dev/null | sed 's/^/--find-links /') \
		$$($(BIN)/pip config get global.extra-index-url 2>/dev/null | xargs -n1 | sed 's/^./--extra-index-url &/') \
		--output-file constraints.txt
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/' constraints.txt

clean:  ## remove the environment and everything built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (PyTorch and the frameworks; a minute or two, once)"
	$(INSTALL) --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Adding the tools for tests and checks"
	$(INSTALL) --editable ".[demo,openai,ray,dev]"
	@touch $@
