# `make` or `make help` lists the targets. Everything sets itself up in .venv first.
SHELL := /bin/sh
.DEFAULT_GOAL := help
BIN := .venv/bin
MAKEFLAGS += --no-print-directory
# Without stored bytecode each of the processes that a pipeline starts compiles our modules again.
unexport PYTHONDONTWRITEBYTECODE

# Where the pip that sets us up finds its packages is pip's own business (PIP_INDEX_URL, pip.conf). Its words go to a
# log, which is not shown: it may hold an index's address with a password in it.
SETUP_LOG := .venv/setup.log
PRINT_VERSION := -c 'import sys; print("%d.%d" % sys.version_info[:2])'

.PHONY: help setup same-python docs pictures demo down image image-base image-test test test-fast lint format golden golden-check links ci mutations test-processors ablations kind conformance bench bench-train bench-eval bench-gpu bench-stopping bench-nightly bench-intervals bench-samplers clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-23s %s\n", $$1, $$2}'

same-python:
	@[ -z "$(PYTHON)" ] || "$(PYTHON)" $(PRINT_VERSION) >/dev/null 2>&1 || { echo "setup: $(PYTHON) is no Python that runs; name another one" >&2; exit 1; }
	@[ -z "$(PYTHON)" ] || [ ! -x $(BIN)/python ] || [ "$$("$(PYTHON)" $(PRINT_VERSION) 2>&1)" = "$$($(BIN)/python $(PRINT_VERSION))" ] || \
	  { echo "setup: .venv has another Python than $(PYTHON); delete .venv, then the same command makes it with that one" >&2; exit 1; }

setup: .venv/.stamp  ## create .venv and install the project in it

# PYTHON=/path/to/python chooses the interpreter.
.venv/.stamp: pyproject.toml constraints.txt | same-python
	@set -u; \
	fail() { echo "setup: $$1" >&2; exit 1; }; \
	python=; found=; \
	for candidate in $${PYTHON:-python3.11 python3.12 python3.13 python3}; do \
	  command -v "$$candidate" >/dev/null 2>&1 || continue; \
	  version=$$("$$candidate" $(PRINT_VERSION) 2>/dev/null) || continue; \
	  found="$$found $$candidate($$version)"; \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$$candidate; break; fi; \
	done; \
	[ -n "$$python" ] || { [ -n "$$found" ] && fail "Python 3.11 or later is needed; there is only$$found. Install it (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make setup PYTHON=/path/to/python3.11"; \
	  fail "Python 3.11 or later is needed and none was found. Install it (Debian, Ubuntu: apt-get install python3 python3-venv) or name one: make setup PYTHON=/path/to/python3.11"; }; \
	[ -x $(BIN)/python ] || { \
	  "$$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$$python has no venv module. Install it (Debian, Ubuntu: apt-get install python3-venv, or python$$version-venv)"; \
	  echo "setup: creating .venv with Python $$version"; \
	  "$$python" -m venv .venv || fail "$$python could not create .venv here (is the disk full, or the folder read-only?)"; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || fail ".venv is incomplete, as after an interruption; delete it, then the same command makes it again"; \
	echo "setup: installing the project into .venv (some minutes the first time; torch is large)"; \
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' >$(SETUP_LOG) 2>&1 || { \
	  if grep -qiE 'no space left|disk quota' $(SETUP_LOG); then fail "the disk is full; .venv needs about 3 GB (with a CUDA torch 9 GB)"; fi; \
	  if grep -qiE 'connection (broken|refused|reset|timed out|error)|NewConnectionError|name resolution|ConnectTimeout|ReadTimeout|Network is unreachable|ProxyError|SSLError|from versions: none' $(SETUP_LOG); then \
	    fail "pip can't reach its package index. Is there a network? Behind a mirror or proxy, set PIP_INDEX_URL or https_proxy; then the same command goes on"; fi; \
	  fail "pip could not install the project; what it said is in $(SETUP_LOG)"; }; \
	touch $@

demo: setup  ## train, score and report a small model on this machine: digits, or DATA=fashion, or DATA=a directory of images
	@$(BIN)/iddpm demo $(if $(DATA),--data "$(DATA)")

ablations: setup  ## every table and figure of the paper on the digits, with a gallery of their reports; SEEDS=5 repeats each trial
	@$(BIN)/iddpm ablate all --scale tiny --seeds $(or $(SEEDS),1)

down:  ## stop the local services that demo left running; their data stays
	@[ ! -x $(BIN)/iddpm ] || $(BIN)/iddpm down

# IMAGE, TARGET (cpu or gpu), BASE_IMAGE, TORCH_INDEX and ENGINE say what to build and by what; see components/container/build.py.
image:  ## build the container image with docker or podman: make image TARGET=gpu IMAGE=registry.example.com/iddpm:1
	@if [ -x $(BIN)/python ]; then python=$(BIN)/python; else python=$${PYTHON:-python3}; fi; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "image: Python 3.11 or later is needed; name one: make image PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" -m components.container.build

image-base:  ## make a Debian to build the image on where no registry can be reached (root, podman, debootstrap)
	@if [ -x $(BIN)/python ]; then python=$(BIN)/python; else python=$${PYTHON:-python3}; fi; PYTHONPATH=. "$$python" tests/image/make_base.py

image-test: setup  ## build the image with podman and runc on a Debian made here, and run the demo's steps in it
	@for tool in podman runc $(if $(BASE_IMAGE),,debootstrap); do \
	  command -v "$$tool" >/dev/null 2>&1 || { echo "image-test: $$tool is not installed (Debian, Ubuntu: apt-get install podman runc debootstrap)" >&2; exit 1; }; \
	done
	@$(BIN)/python -m pytest -x -v -s -p no:cacheprovider --timeout 3600 tests/image/check_image.py

# Three processes with one thread each: tests that start services wait more than they compute, and more would need more memory than a
# laptop has. A module's tests stay together, so that they share what they have set up; the order is that of tests/conftest.py.
test: setup  ## all tests that this machine can run
	@$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

test-fast: setup  ## the tests of a few seconds each
	@$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "not slow and not gpu"

lint: setup  ## formatting, ruff, mypy --strict, import rules
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted as 'make format' would" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@said=$$($(BIN)/lint-imports 2>&1) || { echo "$$said"; exit 1; }

format: setup  ## format, and repair what ruff can
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

golden: setup  ## rewrite the golden files (presets, compiled pipelines); read the diff before you commit it
	@$(BIN)/python tests/golden/regenerate.py

golden-check: setup
	@$(BIN)/python tests/golden/regenerate.py --check

links: setup  ## ask every link to another site in the Markdown and the notebooks; without a network it only says so
	@$(BIN)/python tests/check_links.py

ci: lint golden-check links test  ## what CI runs: lint, golden check, links, all tests

test-processors: setup  ## the numeric tests under other instruction sets, oneDNN kernels and numbers of threads
	@$(BIN)/python tests/processors.py

mutations: setup  ## break the mathematics in known ways and show which test notices
	@$(BIN)/python tests/mutations.py

kind: setup  ## a cluster in Docker from nothing to a finished run (half an hour, 30 GB of disk); needs docker, kind, kubectl, helm
	@k8s/kind.sh

# KUBECONFIG names the cluster; NAMESPACE, IMAGE, OUT and SCENARIOS="train_local cancel" are optional. See tests/conformance/run.py.
conformance: setup  ## prove a cluster, scenario by scenario: KUBECONFIG=... make conformance IMAGE=... (hours; it cleans up)
	@$(BIN)/python tests/conformance/run.py $(if $(NAMESPACE),--namespace $(NAMESPACE)) $(if $(IMAGE),--image $(IMAGE)) \
	  $(if $(OUT),--out $(OUT)) $(if $(SCENARIOS),--scenarios "$(SCENARIOS)") $(ARGS)

# GROUPS="training data" measures some of it; WRITE=1 puts the tables into BENCHMARKS.md when all is measured.
bench: .venv/.bench-stamp  ## speed beside named baselines, with goals; half an hour on an idle machine
	@$(BIN)/python tests/benchmarks/bench.py $(GROUPS) $(if $(WRITE),--write)

bench-train:  ## of these, the training step
	@$(MAKE) --no-print-directory bench GROUPS=training

bench-eval:  ## of these, features and distances
	@$(MAKE) --no-print-directory bench GROUPS=evaluation

bench-gpu: .venv/.bench-stamp  ## the same for what runs on a CUDA device, in half an hour at most (MINUTES=30)
	@$(BIN)/python tests/benchmarks/bench.py --device cuda $(GROUPS) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(WRITE),--write)

.venv/.bench-stamp: .venv/.stamp
	@echo "bench: installing the libraries that are measured beside ours"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,bench]' >.venv/bench-setup.log 2>&1 || { \
	  echo "bench: pip could not install them; what it said is in .venv/bench-setup.log" >&2; exit 1; }
	@touch $@

bench-stopping: setup  ## early stopping on the digits beside full scoring of every checkpoint, with its goals; half an hour
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_stopping.py --num-workers 2

bench-samplers: setup  ## distances at 5, 10 and 20 evaluations by sampler, even and learned steps, beside 250
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_samplers.py $(ARGS)

bench-nightly: setup  ## the nightly detector on 40,000 simulated models, with its goals; a minute or two
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_nightly.py

bench-intervals: setup  ## how often the intervals of the distances cover the truth, by simulation; three quarters of an hour on one core
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_intervals.py $(ARGS)

docs: setup  ## build the documentation's site into site/ (`.venv/bin/mkdocs serve` shows it while you write)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

pictures: setup  ## make the pictures of README.md from a finished demo (needs Chromium)
	@$(BIN)/python tests/pictures/make.py

clean: down  ## stop the services and delete what runs left here (models, data, MLflow's records); keeps .venv
	rm -rf .iddpm compiled site .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
