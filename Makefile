# Two commands for a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DEMO ?=
PYTEST ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long bench check docs deploy lock clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(STAMP) ## create .venv with everything

$(STAMP): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.11 to 3.13, or say which one to use with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): Python 3.11 to 3.13 is needed; say which one to use with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "The venv module of $(PYTHON) is missing: on Debian and Ubuntu, 'apt-get install python3-venv'." >&2; exit 1; }
	@echo "Setting up $(VENV) (once; about a minute) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock || { echo "The packages of requirements.lock could not be installed: see pip's message above; a package index must be reachable." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: $(STAMP) ## run the main job on simulated time, on a server of its own (DEMO="--bars 200" passes options)
	@$(BIN)/quantum-alloc demo $(DEMO)

check: $(STAMP) ## ruff, mypy --strict, import rules, dependencies
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "Formatting differs: run '$(BIN)/ruff format .'." >&2; exit 1; }
	@$(BIN)/mypy
	@out=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$out" >&2; exit 1; }
	@out=$$($(BIN)/deptry src 2>&1) || { echo "$$out" >&2; exit 1; }

test: check ## all checks and tests: 100 examples a law (250 with CI=true)
	@$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report= $(PYTEST)
	@$(BIN)/coverage report

test-long: check ## the laws with a hundred times the examples
	@QA_TEST_PROFILE=long $(BIN)/pytest -n 2 --dist worksteal --timeout 36000 $(PYTEST)

bench: $(STAMP) ## cycles of the services, and the governor's plans, against the server's own time
	@$(BIN)/python benchmarks/cycles.py
	@$(BIN)/python benchmarks/governor.py

docs: $(STAMP) ## write the generated reference pages, shell completion and manual page anew
	@$(BIN)/quantum-alloc config docs settings > docs/reference/settings.md
	@$(BIN)/quantum-alloc config docs metrics > docs/reference/metrics.md
	@$(BIN)/quantum-alloc config docs logs > docs/reference/logs.md
	@$(BIN)/quantum-alloc config docs keys > docs/reference/keys.md
	@$(BIN)/quantum-alloc config docs alerts > docs/reference/alerts.md
	@$(BIN)/python -m tests.tools.shell_pages

deploy: $(STAMP) ## write the copies of units, rights, rules and dashboard in deploy/ anew
	@env -i $(BIN)/quantum-alloc config deploy deploy >/dev/null

lock: $(STAMP) ## resolve requirements.lock anew (installs uv into .venv)
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --all-extras --group dev pyproject.toml -o .lock.out >/dev/null
	@{ echo "# Locked set for development, demo and tests: Python 3.11 to 3.13, Linux and macOS. Made by: make lock"; cat .lock.out; } > requirements.lock
	@rm -f .lock.out

clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
