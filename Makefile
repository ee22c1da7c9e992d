# Everything runs in .venv, which the first target that needs it creates. Python 3.11 or later, make and a package index are enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?= smollm2-135m-instruct
SHELL  := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Some images set it. Each of the many processes that tests start would then compile the program's source again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install dev demo test test-fast lint pytest protos model bench bench-train bench-search bench-candidates bench-quality bench-metamath bench-distillation bench-few-examples bench-examples bench-serve bench-kernels bench-quantised bench-store bench-start bench-publish bench-data bench-golden bench-jobs bench-overload bench-soak fuzz simulate simulate-ci chaos prove-simulation simulate-fairness lock release clean tools rules images try-images try-platform bench-router bench-against gpu-check

help:            ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch first and with its exact version: without it, some indexes install a build of several gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

install: $(VENV)/.installed  ## Create the environment: both services and every command

dev: $(VENV)/.dev  ## Add what tests, checks and benchmarks need

model: install   ## Download the base model if it is missing
	$(BIN)/softprompt models pull $(MODEL)

demo: install    ## Train a prompt, serve it, and replace it while a stream runs, on this machine (STAY=1: the page stays up)
	$(BIN)/softprompt demo $(if $(STAY),--stay)

test: dev        ## Run every check: lint beside the tests, so that it takes no time of its own
	$(MAKE) --jobs 2 lint pytest

lint: dev        ## Generated code, buf, ruff, mypy, import contracts
	$(BIN)/python protos/generate.py --check
	$(BIN)/buf lint protos
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three processes also on two cores: for a third of their time, tests wait for processes, clocks and kills.
pytest: dev model tools  ## All tests, in three processes
	$(BIN)/pytest -n 3 --dist loadscope --no-loadscope-reorder

test-fast: dev   ## Unit tests without Ray, the base model, databases and child processes: two minutes
	$(BIN)/pytest -n 2 --dist loadfile -q -m "not ray and not model and not slow"

tools:           ## Get what tests need beside Python: Prometheus (downloaded), Chromium, Redis and an ARM emulator (installed, as root)
	tests/k8s/get_prometheus.sh
	tests/softprompt/gateway/get_chromium.sh
	tests/shared/kernels/get_emulator.sh
	tests/shared/rpc/get_redis.sh

rules: dev tools  ## Check and test the alert rules with promtool
	$(BIN)/pytest tests/k8s/test_rules.py

images:          ## Build both images with buildah (as root, without a daemon)
	k8s/images/build.sh

try-platform: dev  ## Run every command of docs/platform.md: three base models, six replicas, three tenants, a promotion
	$(BIN)/python -m tests.platform

try-images: images dev model  ## Run the images with the manifests' restrictions: tune a prompt, stream an answer, drain
	$(BIN)/python k8s/images/try_images.py --model "$$($(BIN)/softprompt models pull $(MODEL))"
	$(BIN)/python k8s/images/try_ray.py --model "$$($(BIN)/softprompt models pull $(MODEL))"

protos: dev      ## Generate the Python code from the protos
	$(BIN)/python protos/generate.py

gpu-check:       ## On a GPU: correctness, then benchmarks; PYTHON needs torch, transformers, peft, safetensors and pytest
	$(PYTHON) -m tests.gpu

bench: bench-train bench-serve bench-kernels bench-store bench-jobs  ## The benchmarks except the long ones (quality, overload, soak)

bench-train: dev model   ## Training compared with PEFT, in both dtypes
	for dtype in bfloat16 float32; do $(BIN)/python -m benchmarks.train --dtype $$dtype --model "$$($(BIN)/softprompt models pull $(MODEL))" || exit 1; done

bench-search: dev ## The work of a search, relative to one run
	$(BIN)/python -m benchmarks.train.search

bench-candidates: dev model ## A search's candidates, all trained to the end: DATA=<dir> SET=<name> (half an hour on a core)
	$(BIN)/python -m benchmarks.train.candidates --model "$$($(BIN)/softprompt models pull $(MODEL))" \
		--data "$(or $(DATA),$(error give DATA=<directory> with NAME.train.jsonl and NAME.test.jsonl))" --set "$(or $(SET),$(error give SET=<name of a dataset>))" \
		--output benchmarks/results/candidates-$(SET).json

bench-quality: dev model ## The untuned model, PEFT's methods and ours on the datasets in DATA=<dir>; OPTIONS selects a part (all: days on two cores)
	$(BIN)/python -m benchmarks.quality --data "$(or $(DATA),$(error give DATA=<directory> with NAME.train.jsonl and NAME.test.jsonl))" \
		--model "$$($(BIN)/softprompt models pull $(MODEL))" $(OPTIONS)

bench-metamath: dev ## PEFT's comparison on MetaMathQA for ours, on a GPU: LLAMA=<dir of Llama-3.2-3B> DATA=<dir> KIND=PROMPT
	$(BIN)/python -m benchmarks.metamath --model "$(or $(LLAMA),$(error give LLAMA=<directory of the model>))" \
		--data "$(or $(DATA),$(error give DATA=<directory with metamath.* and gsm8k-test.*>))" --kind $(or $(KIND),PROMPT) $(OPTIONS)

bench-distillation: dev model ## How much of a long instruction a prompt keeps, and what it saves
	$(BIN)/python -m benchmarks.distillation --model "$$($(BIN)/softprompt models pull $(MODEL))" $(OPTIONS)

bench-few-examples: dev model ## How long to train on 5, 20 and 50 examples of each dataset in DATA (long)
	$(BIN)/python -m benchmarks.quality.few_examples --data "$(DATA)" --model "$$($(BIN)/softprompt models pull $(MODEL))"

bench-examples: dev model ## The examples: tuned prompt, bare and instructed model, few-shot (an hour on two cores; NAMES selects some)
	$(BIN)/python -m benchmarks.examples $(NAMES)

bench-serve: dev model   ## Serving compared with transformers, with vLLM if VLLM_PYTHON names its interpreter, with llama.cpp and OpenVINO if LLAMA_CPP="PYTHON GGUF" and OPENVINO="PYTHON GGUF"
	$(BIN)/python -m benchmarks.serve --model "$$($(BIN)/softprompt models pull $(MODEL))" $(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON)) \
		$(if $(LLAMA_CPP),--llama-cpp $(LLAMA_CPP)) $(if $(OPENVINO),--openvino $(OPENVINO))

bench-kernels: dev ## The compiled kernels compared with torch's
	$(BIN)/python -m benchmarks.kernels

bench-quantised: dev model ## Weights of 4 and 8 bits: answers and decode steps compared with bfloat16, on DATA=<dir>
	$(BIN)/python -m benchmarks.quantised --model "$$($(BIN)/softprompt models pull $(MODEL))" \
		--data "$(or $(DATA),$(error give DATA=<directory> with NAME.test.jsonl))"

bench-store: dev ## The prompt store
	$(BIN)/python -m benchmarks.store

bench-start: dev ## A replica's start with a thousand aliased versions
	$(BIN)/python -m benchmarks.start

bench-publish: dev model  ## From publication to first token: a soft prompt, and its keys and values
	$(BIN)/python -m benchmarks.publish --model "$$($(BIN)/softprompt models pull $(MODEL))"

bench-router: dev model  ## Throughput through the router, compared with the replica itself
	$(BIN)/python -m benchmarks.router --model "$$($(BIN)/softprompt models pull $(MODEL))"

bench-against: dev model ## Training and serving compared with those of another commit: COMMIT=<name>
	$(BIN)/python -m benchmarks.against $(or $(COMMIT),$(error give COMMIT=<commit>)) --model "$$($(BIN)/softprompt models pull $(MODEL))"

bench-data: dev model    ## Memory and time of a worker for a gigabyte of text (long)
	$(BIN)/python -m benchmarks.data --tokenizer "$$($(BIN)/softprompt models pull $(MODEL))"

bench-golden: dev model  ## Golden replays in every dtype and kernel, without and with faults (hours for 200 prompts; --resume)
	$(BIN)/python -m benchmarks.golden --model "$$($(BIN)/softprompt models pull $(MODEL))"

bench-jobs: dev model    ## Jobs: latencies, watchers, time to the first step, recovery from each fault
	$(BIN)/python -m benchmarks.jobs --model "$$($(BIN)/softprompt models pull $(MODEL))"

simulate-fairness: dev ## Fair shares of tenants and base models: the scheduler on a virtual clock
	$(BIN)/python -m benchmarks.fairness

simulate: dev    ## Many lives of the whole system with faults, on virtual time: SEEDS=100 (a number) from FIRST=1, and NEW=0 random ones
	$(BIN)/python -m tests.simulation --seeds $(or $(FIRST),1)-$$(( $(or $(FIRST),1) + $(or $(SEEDS),100) - 1 )) \
		--new $(or $(NEW),0) --processes $(or $(PROCESSES),2)

simulate-ci: dev ## The lives for each change: 200 fixed seeds, and 100 that no run had before (NEW)
	$(BIN)/python -m tests.simulation --seeds 1-200 --new $(or $(NEW),100) --processes $(or $(PROCESSES),2)

fuzz: dev        ## Damaged inputs for all readers and running services: INPUTS=100000 for each (a number), from FIRST=1
	$(BIN)/python -m tests.fuzz --first $(or $(FIRST),1) --inputs $(or $(INPUTS),10000)

chaos: dev       ## kill -9 of random processes of the whole stack under load: KILLS=50 (a number), SEED=1
	$(BIN)/python -m tests.chaos --kills $(or $(KILLS),50) --seed $(or $(SEED),1)

prove-simulation: dev ## Which seed finds each bug that is put into the product (at most SEEDS=20 seeds for each)
	$(BIN)/python -m tests.simulation --prove $(or $(SEEDS),20) --processes $(or $(PROCESSES),2)

bench-overload: dev model ## Five times a replica's capacity for two minutes; then steady streams with a greedy neighbour
	$(BIN)/python -m benchmarks.load overload --model "$$($(BIN)/softprompt models pull $(MODEL))"
	$(BIN)/python -m benchmarks.load neighbour --model "$$($(BIN)/softprompt models pull $(MODEL))"

bench-soak: dev model    ## Mixed traffic, new versions and disconnecting clients for SOAK_SECONDS (1200)
	$(BIN)/python -m benchmarks.load soak --model "$$($(BIN)/softprompt models pull $(MODEL))" --seconds $(or $(SOAK_SECONDS),1200)

lock: dev        ## Write the installed versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed -E 's/\+cpu//' > constraints.txt

release: dev     ## Build wheel and sdist into dist/ and check them: contents, metadata, and that the sdist builds the same wheel
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist
	$(BIN)/python -m tests.packaging.check_release dist

clean:           ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist demo-output
