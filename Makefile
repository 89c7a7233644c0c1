# Two commands do everything on a machine that has Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Real logs for tests and recipes; what needs them skips, saying so, where they are absent.
export HEADRACE_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data))

# Modules are compiled when first imported, also where the environment says otherwise: tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test pytest lint types install peers clean clean-kernels
.DELETE_ON_ERROR:

demo: $(VENV)/.kernels
	$(BIN)/headrace demo

# Types are checked while kernels compile and tests run, for nothing else keeps two cores busy to its end.
test: $(VENV)/.installed-test
	$(MAKE) --jobs=3 lint pytest types

pytest: $(VENV)/.installed-test $(VENV)/.kernels
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=10

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

install: $(VENV)/.kernels

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "headrace needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins the CPU build of torch and the versions that were tested. Most modules are never imported, so pip
# compiles none.
PIP_INSTALL := $(BIN)/pip install -qq --no-compile --disable-pip-version-check -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[lake,serve]'
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[lake,observe,onnx,serve,test]'
	touch $(VENV)/.installed $@

$(VENV)/.kernels: $(VENV)/.installed
	$(BIN)/headrace warmup
	touch $@

# The libraries that benchmarks compare with, in an environment of their own.
peers:
	PYTHON=$(PYTHON) sh scripts/make_peers.sh

# Compiled kernels renew themselves when a source changes; this frees their space.
clean-kernels:
	find src -name '*.nb[ic]' -delete
	rm -f $(VENV)/.kernels

clean: clean-kernels
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache demo-run
