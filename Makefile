# Every target sets itself up: a fresh clone needs Python 3.11 or newer and nothing else. The second time is quick.
# TESTS picks tests and adds options of pytest: make test TESTS="tests/langchain_confcascade -x"
PYTHON ?= python3
VENV ?= .venv
TESTS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-all test-newest test-lowest check wheel lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

demo: $(VENV)/.demo  ## watch chains and a query engine answer through the bundled models
	$(BIN)/confcascade demo

test: $(VENV)/.dev check  ## lint, types, import rules, the built wheel, all tests but the large matrices (marker `slow`)
	$(BIN)/pytest -n 2 -m "not slow" $(TESTS)

test-all: $(VENV)/.dev check  ## the same with the large matrices: before a release, or when scoring or drivers change
	$(BIN)/pytest -n 2 $(TESTS)

# two environments: LlamaIndex's package for OpenAI's models needs openai<3, so openai 3 is tried without it
test-newest: $(VENV)-newest/.made $(VENV)-openai3/.made  ## the tests with what a resolver picks today, then with openai 3
	$(VENV)-newest/bin/pytest -n 2 -m "not slow" $(TESTS)
	$(VENV)-openai3/bin/pytest -n 2 -m "not slow" $(or $(TESTS),$(OF_OPENAI))

test-lowest: $(VENV)-lowest/.made  ## the tests with the oldest versions that pyproject.toml allows
	$(VENV)-lowest/bin/pytest -n 2 -m "not slow" $(TESTS)

OF_OPENAI := tests/confcascade/models tests/confcascade/cascade_file tests/confcascade/cli tests/langchain_confcascade

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

clean:  ## remove the environments and everything built
	rm -rf $(VENV) $(VENV)-newest $(VENV)-openai3 $(VENV)-lowest dist build .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# PyTorch is left out of what uv resolves, and stays at the version of constraints.txt: others come with gigabytes of CUDA
RESOLVE = $(BIN)/uv pip compile pyproject.toml --all-extras --quiet --no-annotate --no-header \
	--python-version $$($(BIN)/python -c "import sys; print('%d.%d' % sys.version_info[:2])") --override $(@D)/left-out.txt
MADE = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt) \
	--requirement $(@D)/resolved.txt && $(@D)/bin/python -m pip install --quiet --no-deps --editable . && touch $@
NEVER := ; python_version < "3"

$(VENV)-newest/.made: pyproject.toml | $(VENV)/.dev
	$(PYTHON) -m venv --clear $(@D)
	echo 'torch $(NEVER)' > $(@D)/left-out.txt
	$(RESOLVE) --output-file $(@D)/resolved.txt
	$(MADE)

$(VENV)-openai3/.made: pyproject.toml | $(VENV)/.dev
	$(PYTHON) -m venv --clear $(@D)
	printf '%s $(NEVER)\n' torch llama-index-llms-openai llama-index-llms-openai-like > $(@D)/left-out.txt
	$(RESOLVE) --output-file $(@D)/resolved.txt
	$(MADE)

$(VENV)-lowest/.made: pyproject.toml | $(VENV)/.dev
	$(PYTHON) -m venv --clear $(@D)
	echo 'torch $(NEVER)' > $(@D)/left-out.txt
	$(RESOLVE) --resolution lowest-direct --output-file $(@D)/resolved.txt
	$(MADE)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (PyTorch and the frameworks; a minute or two, once)"
	$(INSTALL) --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "Adding the tools for tests and checks"
	$(INSTALL) --editable ".[demo,llamacpp,openai,ray,train,dev]"
	@touch $@
