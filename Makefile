# `make` lists the targets. Everything lives in .venv; settings are environment variables (docs/configuration.md).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --universal
ARGS ?=
# Command line clients that tests drive, 750 MB of them: installed once and again only when their versions change.
CLIS := $(if $(filter 1,$(HOOSH_TEST_WITHOUT_CLIS)),,$(VENV)/node/clis/.installed)
NPM_INSTALL := npm install --silent --no-audit --no-fund --no-package-lock

.PHONY: help install run test check bench chaos fmt lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## Make .venv with everything the gateway needs
	@:

run: install  ## Prepare the data directory on the first start, then serve (PORT, HOOSH_DATA_DIR, ...)
	@$(BIN)/python manage.py init
	@exec $(BIN)/python manage.py serve

test: $(VENV)/.installed-dev $(VENV)/node/.installed $(CLIS)  ## Every test on SQLite, database tests again on PostgreSQL (ARGS=...)
	@tools/ensure_system.sh
	@tools/run_tests.sh $(BIN)/pytest $(ARGS)

check: check-format check-lint check-types check-layers check-migrations check-deploy check-docs check-sizes  ## Format, lint, types, layers, migrations, settings, docs, sizes

bench: $(VENV)/.installed-dev  ## The gateway beside nginx on the same work (ARGS="--quick", "--gate", ...)
	@tools/ensure_system.sh --bench
	@$(BIN)/python -m bench.run $(ARGS)

chaos: $(VENV)/.installed-dev  ## Kill processes at random under load and account for every request (ARGS=...)
	@tools/ensure_system.sh
	@$(BIN)/python -m tests.chaos.run $(ARGS)

fmt: $(VENV)/.installed-dev  ## Format and fix what the linter can fix
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

lock: $(VENV)/.installed-dev  ## Compile requirements*.txt anew from requirements*.in
	@command -v $(BIN)/uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(LOCK) requirements.in -o requirements.txt
	@$(LOCK) requirements-dev.in -o requirements-dev.txt

clean:  ## Remove .venv and every cache; the data directory stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: requirements.txt tools/ensure_venv.sh
	@tools/ensure_venv.sh $(VENV)
	@$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(VENV)/node/.installed: $(VENV)/.installed tests/e2e/node/package.json
	@tools/ensure_system.sh
	@mkdir -p $(VENV)/node && cp tests/e2e/node/package.json $(VENV)/node/
	@$(NPM_INSTALL) --prefix $(VENV)/node
	@touch $@

$(VENV)/node/clis/.installed: tests/e2e/node/clis/package.json | $(VENV)/node/.installed
	@mkdir -p $(@D) && cp tests/e2e/node/clis/package.json $(@D)/
	@$(NPM_INSTALL) --prefix $(@D)
	@touch $@

# One target per check, so that `make -j check` runs them side by side and a failure names itself.
.PHONY: check-format check-lint check-types check-layers check-migrations check-deploy check-docs check-sizes
check-format check-lint check-types check-layers check-migrations check-deploy check-docs check-sizes: $(VENV)/.installed-dev

check-format:
	@$(BIN)/ruff format --quiet --check .

check-lint:
	@$(BIN)/ruff check --quiet .

check-types:
	@$(BIN)/mypy --no-error-summary

check-layers:
	@out=$$($(BIN)/lint-imports 2>&1) || { echo "$$out"; exit 1; }

check-migrations:
	@$(call with_empty_data_dir,$(BIN)/python manage.py makemigrations --check --dry-run)

check-deploy:
	@$(call with_empty_data_dir,$(BIN)/python manage.py check --deploy --fail-level WARNING)

check-docs:
	@$(call with_empty_data_dir,$(BIN)/python -m tools.check_docs)

check-sizes:
	@$(BIN)/python -m tools.check_sizes

# Commands that load the settings must neither read nor make this checkout's own data.
define with_empty_data_dir
dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
out=$$(env -u DATABASE_URL HOOSH_DATA_DIR="$$dir" $(1) 2>&1) || { echo "$$out"; exit 1; }
endef
