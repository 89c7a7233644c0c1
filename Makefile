# Two commands do everything on a machine that has Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Real logs for tests and recipes; what needs them skips, saying so, where they are absent.
export HEADRACE_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data))

.PHONY: demo test lint types install peers clean clean-kernels
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/headrace demo

# Tests start hundreds of processes, which compile every module again where Python may not write bytecode.
test: $(VENV)/.installed-test lint types
	$(BIN)/python -m compileall -q src
	$(BIN)/pytest -n 2 --durations=10

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

install: $(VENV)/.installed

# constraints.txt pins the CPU build of torch and the versions that were tested.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headrace needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[lake]'
	$(BIN)/python -m compileall -q src
	$(BIN)/headrace warmup
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[test,observe]'
	touch $@

# The libraries that benchmarks compare with, in an environment of their own.
peers:
	PYTHON=$(PYTHON) sh scripts/make_peers.sh

# Compiled kernels renew themselves when a source changes; this frees their space.
clean-kernels:
	find src -name '*.nb[ic]' -delete

clean: clean-kernels
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache demo-run
