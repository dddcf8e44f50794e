# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-tests demo dev test soak test-vm fuzz fuzz-replay bench bench-quick bench-hostile bench-phases libraries check checks format lock images clean

BIN := .venv/bin
# Processes that tests are spread over.
TEST_PROCESSES ?= 3
# What scenarios of faults record, for docs/reliability.md.
ROWS := $(CURDIR)/.nanoagent/reliability.jsonl
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

announce = @printf '\n[%s] %s\n' "$@" "$(1)"

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## everything that the other targets need; quick when it is there
	@scripts/setup

demo: setup  ## the whole worker with an embedded stack: the examples' jobs, twice
	$(call announce,the examples)
	@$(BIN)/nanoagent demo

dev: setup  ## the embedded stack and the agent, until Ctrl-C
	$(call announce,embedded stack and agent; Ctrl-C stops them)
	@$(BIN)/nanoagent dev

setup-tests:
	@scripts/setup tests

test:  ## lint, types, import contracts and every test
	@scripts/setup venv
	@# The checks need the virtual environment alone; the images are built meanwhile.
	@scripts/setup tests & setup=$$!; \
		checked=0; $(MAKE) --no-print-directory checks || checked=$$?; \
		wait $$setup && exit $$checked
	$(call announce,tests with containers)
	@# By file, because what a file's tests share (workers, containers, engines) is made once then. The files with the
	@# longest tests come first, or one process would still be at them when the others have ended.
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations 25 \
		tests/faults tests/e2e tests/integration tests/adversarial

soak: setup-tests  ## faults at every step, ten minutes of random ones (SEED=…), memory over 10,000 jobs; half an hour
	$(call announce,faults: each recorded for docs/reliability.md)
	@mkdir -p .nanoagent
	@rm -f $(ROWS)
	@RELIABILITY_ROWS=$(ROWS) $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile -m 'soak or not soak' \
		tests/faults $(shell grep -l support.checks.reliability tests/e2e/*.py)
	$(call announce,random faults)
	@RELIABILITY_ROWS=$(ROWS) PYTHONPATH=tests $(BIN)/python -m faults.random_run $(if $(SEED),--seed $(SEED))
	@$(BIN)/python scripts/gen_reliability.py $(ROWS)
	$(call announce,memory)
	@$(BIN)/pytest -s -m 'soak or not soak' tests/soak

test-vm: setup  ## levels and memory on a host as most users have it, emulated; twenty minutes
	$(call announce,a Debian machine with AppArmor and control groups v2)
	@scripts/test-vm

bench: setup  ## what a run costs against the bare program; minutes, into docs/benchmarks
	$(call announce,best on an idle machine)
	@$(BIN)/python -m benchmarks.bench --report docs/benchmarks

bench-quick: setup  ## the same in less than a minute; the last line is JSON
	@$(BIN)/python -m benchmarks.bench --quick

bench-hostile: setup  ## what honest jobs wait beside hostile ones, against a quiet worker; a minute
	$(call announce,500 jobs; best on an idle machine)
	@$(BIN)/pytest -q tests/e2e/test_mixed_load.py

bench-phases: setup  ## where a job's time goes: cold, warm and hot, for each runtime
	$(call announce,phases; best on an idle machine)
	@$(BIN)/python benchmarks/phases.py

libraries: setup-tests  ## libraries and functions of others, fetched and run; half an hour, into docs/libraries.md
	$(call announce,packages from the registries that pip npm and apt are set to)
	@$(BIN)/python -m benchmarks.libraries --report docs/libraries.md

fuzz:  ## random search for inputs that break parsers and properties; FUZZ_SECONDS (60) for each parser
	@scripts/setup venv
	$(call announce,properties with new examples)
	@$(BIN)/pytest -q -n $(TEST_PROCESSES) --hypothesis-profile=search $(shell grep -l hypothesis -r tests/unit)
	$(call announce,archive job protocol)
	@PYTHONPATH=tests $(BIN)/python -m fuzz

fuzz-replay:  ## what fuzzing has found, again: TARGET=archive INPUT=.nanoagent/fuzz/archive/crash-…
	@PYTHONPATH=tests $(BIN)/python -m fuzz replay $(TARGET) $(INPUT)

check:  ## the same without the tests that need Docker
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
	@$(BIN)/pytest -q -n $(TEST_PROCESSES) tests/unit

format:  ## rewrite the code as the formatter wants it
	@scripts/setup venv
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock:  ## requirements*.txt anew from pyproject.toml
	@scripts/setup venv
	@$(UV_COMPILE) --upgrade pyproject.toml --output-file requirements.txt
	@# uv, and what builds the package itself, are no dependencies of it; the set-up needs them locked too.
	@printf 'uv\nhatchling\neditables\n' | $(UV_COMPILE) --upgrade pyproject.toml --group dev \
		--constraint requirements.txt - --output-file requirements-dev.txt
	@git diff --stat -- requirements.txt requirements-dev.txt

images:  ## the runtime images alone (Docker must answer)
	@scripts/images

clean:  ## what was made here: virtual environment, logs, caches (not the images)
	@rm -rf .venv .nanoagent .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
