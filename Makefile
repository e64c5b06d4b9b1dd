# `make demo` and `make test` need Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-all check clean

demo: $(VENV)/ready
	$(BIN)/python train_vae.py configs/vae/mnist5k.yaml --out $(DEMO)/vae
	$(BIN)/python train_diffusion.py configs/diffusion/mnist5k.yaml --autoencoder $(DEMO)/vae --out $(DEMO)/diffusion
	$(BIN)/python sample.py $(DEMO)/diffusion --out $(DEMO)/samples.png --num 100
	$(BIN)/python sample.py $(DEMO)/diffusion --out $(DEMO)/samples --num 1000 --sampler dpm++2m --steps 14
	$(BIN)/python benchmarks/digits.py $(DEMO)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)
