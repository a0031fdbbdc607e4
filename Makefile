# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := $(VENV)/bin
# Rules and scripts call `python` and `matchlib`; the environment's own come first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test test-fast style setup clean

demo: setup
	snakemake --cores $(CORES)
	@echo "Open results/report/index.html"

test: setup
	pytest -n $(CORES) --dist worksteal -m "not slow"
	pytest -m slow

test-fast: setup
	pytest -n $(CORES) --dist worksteal -m "not slow"

style: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	snakefmt --check Snakefile rules
	snakemake --lint

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "matchlib needs Python 3.11 or newer; say which: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	@touch $@

clean:
	rm -rf results logs build .snakemake
