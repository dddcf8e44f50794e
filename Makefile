# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-tests demo dev test test-all soak test-vm fuzz fuzz-replay bench bench-quick bench-real bench-many bench-hostile bench-phases libraries check checks format lock images clean

BIN := .venv/bin
# The number of processes for tests with containers. They often wait, so that there are more than CPUs.
TEST_PROCESSES ?= 4
# The number of processes for unit tests. Each one collects all tests, so that there are no more than CPUs.
UNIT_PROCESSES ?= $(shell nproc)
# Every test process and every worker that a test starts would compile the source and the tests again.
export PYTHONDONTWRITEBYTECODE =
# The tests that `make test` and `make check` run. CONTRIBUTING.md describes the markers.
SELECT ?= not soak and not exhaustive
# The file in which the fault tests record their results, for docs/reliability.md.
ROWS := $(CURDIR)/.nanoagent/reliability.jsonl
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

announce = @printf '\n[%s] %s\n' "$@" "$(1)"

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## install all that the other targets need; quick if nothing is missing
	@scripts/setup

demo: setup  ## run the examples twice, with a worker on an embedded stack
	$(call announce,the examples)
	@$(BIN)/nanoagent demo

dev: setup  ## run the embedded stack and an agent until Ctrl-C
	$(call announce,embedded stack and agent; Ctrl-C stops them)
	@$(BIN)/nanoagent dev

setup-tests:
	@scripts/setup tests

test:  ## all checks, and the tests that CI runs
	@scripts/setup venv
	@# The checks need only the virtual environment. The images are built at the same time.
	@scripts/setup tests & setup=$$!; \
		checked=0; $(MAKE) --no-print-directory checks || checked=$$?; \
		wait $$setup && exit $$checked
	$(call announce,tests with containers)
	@# The tests of a file run in one process, so that they share workers, containers and engines. The files with the
	@# longest tests come first. Otherwise they would run at the end, while other processes are idle.
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 25 -m '$(SELECT)' \
		tests/faults tests/e2e tests/integration tests/adversarial

test-all:  ## `make test` with every combination of languages, isolation levels and programs; half an hour
	@$(MAKE) --no-print-directory test SELECT='not soak'

soak: setup-tests  ## faults at every step, random faults (SEED=…), memory over 10,000 jobs; 30 minutes
	$(call announce,faults at every step)
	@mkdir -p .nanoagent
	@rm -f $(ROWS)
	@RELIABILITY_ROWS=$(ROWS) $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile -m 'soak or not soak' \
		tests/faults $(shell grep -l support.checks.reliability tests/e2e/*.py)
	$(call announce,random faults)
	@RELIABILITY_ROWS=$(ROWS) PYTHONPATH=tests $(BIN)/python -m faults.random_run $(if $(SEED),--seed $(SEED))
	@$(BIN)/python scripts/gen_reliability.py $(ROWS)
	$(call announce,memory)
	@$(BIN)/pytest -s -m 'soak or not soak' tests/soak

test-vm: setup  ## isolation levels and memory limits on an emulated typical host; 20 minutes
	$(call announce,a Debian machine with AppArmor and control groups v2)
	@scripts/test-vm

bench: setup  ## compare runs with the bare program, into docs/benchmarks with the commit; 8 minutes
	$(call announce,use an idle machine)
	@$(BIN)/python -m benchmarks.bench --report docs/benchmarks

bench-quick: setup  ## the same benchmark in a minute, at most 90 s; the last line is JSON
	@$(BIN)/python -m benchmarks.bench --quick

bench-real: setup  ## real functions against the bare program, into docs/benchmarks; 10 minutes
	$(call announce,packages from the registries of pip and npm; use an idle machine)
	@$(BIN)/python -m benchmarks.real --report docs/benchmarks

bench-many: setup  ## hundreds of functions on one worker, into docs/benchmarks; 30 minutes
	$(call announce,up to 1000 functions; use an idle machine)
	@$(BIN)/python -m benchmarks.many --report docs/benchmarks

bench-hostile: setup  ## the delay of honest jobs by hostile jobs; a minute
	$(call announce,500 jobs; use an idle machine)
	@$(BIN)/pytest -q -m exhaustive tests/e2e/test_mixed_load.py

bench-phases: setup  ## the duration of each phase of a job: cold, warm and hot, for each runtime
	$(call announce,phases; use an idle machine)
	@$(BIN)/python benchmarks/phases.py

libraries: setup-tests  ## fetch and run libraries of other projects, into docs/libraries.md; 30 minutes
	$(call announce,packages from the registries of pip npm and apt)
	@$(BIN)/python -m benchmarks.libraries --report docs/libraries.md

fuzz:  ## search for inputs that break parsers and properties; FUZZ_SECONDS (60) for each parser
	@scripts/setup venv
	$(call announce,properties with new examples)
	@$(BIN)/pytest -q -n $(TEST_PROCESSES) --hypothesis-profile=search $(shell grep -l hypothesis -r tests/unit)
	$(call announce,archive job protocol)
	@PYTHONPATH=tests $(BIN)/python -m fuzz

fuzz-replay:  ## repeat a finding of the fuzzer: TARGET=archive INPUT=.nanoagent/fuzz/archive/crash-…
	@PYTHONPATH=tests $(BIN)/python -m fuzz replay $(TARGET) $(INPUT)

check:  ## format, lint, types, import contracts, commit subjects and unit tests, without Docker
	@scripts/setup venv
	@$(MAKE) --no-print-directory checks

checks:
	$(call announce,format)
	@$(BIN)/ruff format --check .
	$(call announce,lint)
	@$(BIN)/ruff check .
	$(call announce,types)
	@$(BIN)/mypy
	$(call announce,import contracts)
	@$(BIN)/lint-imports
	$(call announce,commit subjects)
	@$(BIN)/python scripts/commit_subjects.py
	$(call announce,unit tests)
	@$(BIN)/pytest -q -n $(UNIT_PROCESSES) -m '$(SELECT)' tests/unit

format:  ## format the code
	@scripts/setup venv
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock:  ## update requirements*.txt from pyproject.toml
	@scripts/setup venv
	@$(UV_COMPILE) --upgrade pyproject.toml --output-file requirements.txt
	@# The set-up also needs uv and the build tools of this package. They are not dependencies, but are locked, too.
	@printf 'uv\nhatchling\neditables\n' | $(UV_COMPILE) --upgrade pyproject.toml --group dev \
		--constraint requirements.txt - --output-file requirements-dev.txt
	@git diff --stat -- requirements.txt requirements-dev.txt

images:  ## build the runtime images (requires Docker)
	@scripts/images

clean:  ## delete the virtual environment, logs and caches (not the images)
	@rm -rf .venv .nanoagent .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
