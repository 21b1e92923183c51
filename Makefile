# Two commands do all the set-up: `make run` and `make test`. Both may be typed again at any time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCENARIO ?= scenarios/70b_8k_int4.yaml
ARGS ?=
VLLM ?= 0.31.0

.DEFAULT_GOAL := help
.PHONY: help run setup test test-vllm check pretrained clean

help: ## List what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

run: ## Set up, then run SCENARIO (default: the 70B at 8K on one 80 GB GPU)
	@$(PYTHON) tools/environment.py --for run
	@$(BIN)/bench run $(SCENARIO) $(ARGS)

setup: ## Only set up what `make run` needs
	@$(PYTHON) tools/environment.py --for run

test: ## Set up what the tests need, then pass them
	@$(PYTHON) tools/environment.py --for test
	@$(BIN)/python -m pytest $(ARGS)

test-vllm: ## The scheduler's tests beside another vLLM (VLLM=0.31.0; 3.5 GB, once)
	@$(PYTHON) tools/environment.py --for test --vllm $(VLLM)
	@.venv-vllm-$(VLLM)/bin/python -m pytest tests/test_scheduler.py tests/test_stepwise.py $(ARGS)

check: ## Lint and types: ruff and mypy
	@$(PYTHON) tools/environment.py --for test
	@$(BIN)/ruff check harness tests benchmarks
	@$(BIN)/mypy

pretrained: ## Fetch and convert SmolLM2-135M once, ahead of scenarios/smollm2_cpu.yaml
	@$(PYTHON) tools/environment.py --for run
	@$(BIN)/python -m harness.engines.pretrained

clean: ## Remove the environments (results stay)
	rm -rf $(VENV) .venv-vllm-*
