# `make help` lists the targets.

VENV ?= .venv
PYTHON ?= python3.11
EXTRAS ?= regress
PYTEST_ARGS ?=
TEST_WORKERS ?= auto
KNOWN_EXTRAS := regress nerf meta nas teacher docs dev all
DEV_EXTRAS := regress,nerf,meta,nas,teacher,docs,dev

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo demo-nerf demo-meta demo-nas test mutations lint docs format clean

# One stamp per extra says that the environment holds it for exactly these files, in this folder, with these packages
# (an editable install knows the packages that were there). Contents, not times: a fresh clone has fresh times.
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; echo */__init__.py; } | cksum | tr -d ' ')
comma := ,
WANTED := $(subst $(comma), ,$(EXTRAS))
STAMPS := $(patsubst %,$(VENV)/.evos-$(KEY)-%,core $(WANTED))
SUBMAKE := $(MAKE) --no-print-directory

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: VENV=$(VENV) PYTHON=$(PYTHON) EXTRAS=$(EXTRAS) (of $(KNOWN_EXTRAS)) PYTEST_ARGS=..."

install: $(STAMPS) ## make the environment VENV with EXTRAS, if it is not there already
	@echo "evos[$(EXTRAS)] is installed in $(VENV)"

$(STAMPS) &:
	@[[ -z "$(filter-out $(KNOWN_EXTRAS),$(WANTED))" ]] || { \
		echo "error: EXTRAS: got $(EXTRAS); allowed: $(KNOWN_EXTRAS), joined by commas" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: PYTHON: got $(PYTHON), which does not run here; allowed: Python 3.11 or later" >&2; exit 2; }
	@echo "installing evos[$(EXTRAS)] into $(VENV) (the first time: several minutes, about 7 GB)"
	@"$(VENV)/bin/python" -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv "$(VENV)"
	@"$(VENV)/bin/python" -m pip install $(if $(CI),--quiet) --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@find "$(VENV)/" -maxdepth 1 -name '.evos-*' ! -name '.evos-$(KEY)-*' -delete
	@touch $(STAMPS)

demo: ## train one image with every pixel, with EVOS and by the fast recipe, and compare them in runs/demo
	@$(SUBMAKE) install EXTRAS=regress
	"$(VENV)/bin/python" image_regression/demo.py --out runs/demo --overwrite

demo-nerf: ## train nerfacto and evos-nerfacto on a ray-traced scene, and compare them in runs/demo-nerf
	@$(SUBMAKE) install EXTRAS=regress,nerf
	"$(VENV)/bin/python" -m evos_nerf.demo --out runs/demo-nerf --overwrite

demo-meta: ## train one network for many photos in two processes, and show photos it never saw in runs/demo-meta
	@$(SUBMAKE) install EXTRAS=regress,meta
	"$(VENV)/bin/python" generalizable/demo.py out=runs/demo-meta --overwrite

demo-nas: ## train a supernet on rendered rooms, search it, and compare what it finds with random search in runs/demo-nas
	@$(SUBMAKE) install EXTRAS=regress,nas
	"$(VENV)/bin/python" evonas/demo.py --out runs/demo-nas --overwrite

lint: ## check style and types
	@$(SUBMAKE) install EXTRAS=$(DEV_EXTRAS)
	"$(VENV)/bin/ruff" check
	"$(VENV)/bin/ruff" format --check
	"$(VENV)/bin/pyright" --pythonpath "$(VENV)/bin/python"

docs: ## build the pages of docs/ and the API reference into site/; a warning is an error
	@$(SUBMAKE) install EXTRAS=$(DEV_EXTRAS)
	"$(VENV)/bin/mkdocs" build --quiet --strict

test: lint docs ## lint, build the pages, then run the tests; PYTEST_ARGS="-m 'not slow'" and the like go to pytest
	OMP_NUM_THREADS=1 "$(VENV)/bin/python" -m pytest -n $(TEST_WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

mutations: ## make bugs of one line each in a copy, and see that the tests catch them; WORDS="draws cache" picks some
	@$(SUBMAKE) install EXTRAS=$(DEV_EXTRAS)
	"$(VENV)/bin/python" tests/mutations.py $(WORDS)

format: ## rewrite the files in the project's style
	@$(SUBMAKE) install EXTRAS=$(DEV_EXTRAS)
	"$(VENV)/bin/ruff" check --fix
	"$(VENV)/bin/ruff" format

clean: ## remove caches and .venv; runs/ stays
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis site
	find . -name __pycache__ -prune -exec rm -rf {} +
