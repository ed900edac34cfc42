# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On a machine with an NVIDIA driver, CuPy for the CUDA version that the driver supports.
CUDA_MAJOR := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -n 1)
EXTRAS ?= $(if $(filter 12,$(CUDA_MAJOR)),cupy-cuda12,$(if $(filter-out 9 10 11,$(CUDA_MAJOR)),cupy-cuda13,))
SAMPLE := data/sample

.PHONY: run test lint types layers pytest gpu-check bench bench-quick bench-full clean
.DELETE_ON_ERROR:

run: $(VENV)/.run $(SAMPLE)/.complete
	$(BIN)/stackyard run configs/quickstart.yaml --overwrite

test: $(VENV)/.test lint types layers pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

layers: $(VENV)/.test
	$(BIN)/lint-imports

# Most of the tests' time is waiting: for processes to start, to die, to be missed.
pytest: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# With the Python at hand and what it has: a machine with a GPU may have no network. See benchmarks/gpu_check.py.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check $(GPU_CHECK)

# Under 30 minutes on 2 cores; also fills in the README's table.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks --readme README.md

# Under 3 minutes: shows that all of them run, and writes no results.
bench-quick: $(VENV)/.bench
	$(BIN)/python -m benchmarks --quick

# Hours: 200 stacks end to end, up to 10^5 jobs.
bench-full: $(VENV)/.bench
	$(BIN)/python -m benchmarks --full --readme README.md

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Stackyard needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.run: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --editable . --group test --constraint constraints.txt
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --editable . --group bench --constraint constraints.txt
	touch $@

$(SAMPLE)/.complete: | $(VENV)/.run
	$(BIN)/stackyard sample $(SAMPLE)
	touch $@

clean:
	rm -rf $(VENV) data out
