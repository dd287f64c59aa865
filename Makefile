# Set-up uses plain pip: constraints.txt pins what was tested. PYTHON may name another interpreter (3.10 or newer).
PYTHON ?= python3
# Which demo pipeline: cogvideox, wan or hunyuanvideo.
FAMILY ?= cogvideox
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# For the tests of the GPU kernels where torch did not bring its own (CPU builds); no constraint, for that would contradict torch's.
TRITON := triton==3.9.0

# Which diffusers `make contract` tries: a version such as 0.42.0, or a range such as '>=0.42,<0.44', of which pip takes the newest.
DIFFUSERS ?= >=0.42,<0.44
CONTRACT := build/contract
CONTRACT_TESTS := tests/runtime/test_diffusers_contract.py tests/runtime/test_diffusers.py tests/test_live.py

.PHONY: help setup triton demo test gpu-test gpu-bench contract check format demo-train demo-check

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## Create .venv with everything that users and tests need.

# torch first and by itself: the pinned build must be there before a package's range could choose another one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,dev]'
	touch $(STAMP)

demo: setup  ## Quantize the bundled demo pipeline to W4A8 and write runs/demo/report.html.
	$(BIN)/s2q run demo -o runs/demo

triton: setup
	@$(BIN)/python -c 'import triton' 2>/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TRITON) || echo 'no triton here: its tests are skipped'

test: setup triton  ## Run the tests.
	$(BIN)/pytest

gpu-test: setup triton  ## Run the tests of the GPU kernels: on the GPU if there is one, else interpreted.
	$(BIN)/pytest tests/runtime/gpu

gpu-bench: setup  ## Measure on a GPU: operators, whole transformers, calibration; results in benchmarks/results/.
	$(BIN)/python benchmarks/gpu.py operators
	$(BIN)/python benchmarks/gpu.py efficiency
	$(BIN)/python benchmarks/gpu.py calibration

contract: setup  ## Test what leans on diffusers' insides against another one (DIFFUSERS=0.42.0, or a range).
	rm -rf $(CONTRACT)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(CONTRACT) 'diffusers$(if $(findstring =,$(DIFFUSERS)),,==)$(DIFFUSERS)'
	PYTHONPATH=$(CONTRACT) $(BIN)/python -c 'import diffusers; assert "contract" in diffusers.__file__; print("diffusers", diffusers.__version__)'
	PYTHONPATH=$(CONTRACT) $(BIN)/pytest -q -p no:cacheprovider $(CONTRACT_TESTS)

check: setup  ## Lint, and check the formatting.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## Mend what check finds, as far as it can be mended.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo-train: setup  ## Train a demo (FAMILY=cogvideox, wan or hunyuanvideo) anew (hours on two cores); interrupted, it goes on.
	$(BIN)/python -m s2q.demo.train --family $(FAMILY) --output runs/demo-trained/$(FAMILY)

demo-check: setup  ## Read a demo's clips back on held-out prompts.
	$(BIN)/python -m s2q.demo.check --family $(FAMILY) --clips 128
