# make demo: set up, then both phases on real translations, evaluation, export and a report, on this machine.
# make test: set up and run the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
RUN    ?= runs/quickstart
# Recipe overrides for the demo, such as ARGS="phases.cross.steps=200 data.directory=data/other".
ARGS   ?=

# CUDA devices where there are any, else two ranks on two cores.
RANKS = $$($(BIN)/python -c "import os, torch; print(torch.cuda.device_count() or min(2, os.cpu_count() or 1))")
DEVICE = $$($(BIN)/python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
LAUNCH = DS_ACCELERATOR=$(DEVICE) PATH="$(abspath $(BIN)):$$PATH" $(BIN)/deepspeed --log_level error --num_accelerators $(RANKS)

.PHONY: setup demo test fuzz layouts check-cleaning lint types clean
setup: $(READY)

$(READY): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev,mpi,evaluation]'
	touch $(READY)

demo: setup
	$(BIN)/python launch/prepare.py --recipe quickstart $(ARGS)
	$(LAUNCH) launch/pretrain.py --phase meta --run_dir $(RUN) $(ARGS)
	$(LAUNCH) launch/pretrain.py --phase cross --run_dir $(RUN) $(ARGS)
	$(BIN)/python launch/evaluate.py --run_dir $(RUN) --phase untrained meta cross
	$(BIN)/python launch/convert.py export --run_dir $(RUN) --phase cross --output $(RUN)/export --overwrite \
		--fill_mask en de fr
	$(BIN)/python launch/evaluate.py --run_dir $(RUN) --report

test: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest

# About ten minutes and 5 GB of disk: cleaning of 1 GB of generated text, its memory and what it finds.
check-cleaning: setup
	$(BIN)/python launch/benchmark.py cleaning --output docs/results/$$(date +%F)-cleaning.json

# Thousands of damaged token stores: none may crash the reader or be read past its end.
fuzz: setup
	$(BIN)/python tests/fuzz --count 12000

# Every tensor, sequence, data-parallel and ZeRO layout against one process, on CPU with gloo: about ten minutes on two cores.
layouts: setup
	mkdir -p docs/results
	OMP_NUM_THREADS=1 $(BIN)/python tests/distributed/layout_table.py docs/results/$$(date +%F)-layouts.md

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs data build *.egg-info
