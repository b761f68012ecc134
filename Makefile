# SPDX-License-Identifier: Apache-2.0
# Everything a developer does. Each target installs what it needs first (tools/setup); nothing is done twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON := .venv/bin/python
UV := .venv/bin/uv
PYTHON_SOURCES := src tests bench tools hatch_build.py
# vmlinux.h is the kernel's text, not ours
C_SOURCES = $(filter-out %/vmlinux.h,$(shell find bpf bench tests -name '*.[ch]'))
SHELL_SOURCES := .ci/run tools/setup tools/vm-test tools/vm-test-inner tools/bench-transparent-vm

CLANG ?= clang
export CLANG
# The tests start the daemon and the command line many hundred times: what is compiled once is kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=
# more for pytest: make test PYTEST_ARGS='-k half_close'
PYTEST_ARGS ?=
# what was chosen may all be in the other half
NONE_CHOSEN = $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])
# more for bench-flows and bench-transparent: make bench-flows BENCH_ARGS=--ten-million
BENCH_ARGS ?=
# more for oracle: make oracle ORACLE_ARGS='--hook xdp --cases 500 --seed 7'
ORACLE_ARGS ?=

.PHONY: help
help: ## this list (default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-21s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: setup-build objects ## compiler, Python environment and BPF objects; then .venv/bin/clearway runs

.PHONY: test
test: setup-test objects bench-objects test-objects ## unit, packet, classifier, flowtable, net, oracle (as root)
	@$(PYTHON) -m pytest -n auto --maxprocesses 8 $(PYTEST_ARGS) tests/unit tests/packet tests/classifier $(NONE_CHOSEN)
	@$(PYTHON) -m pytest $(PYTEST_ARGS) tests/flowtable $(NONE_CHOSEN)
	@$(PYTHON) -m pytest -n 2 --dist loadscope $(PYTEST_ARGS) tests/net $(NONE_CHOSEN)
	@$(PYTHON) -m pytest -n 2 --dist loadscope $(PYTEST_ARGS) tests/oracle $(NONE_CHOSEN)

.PHONY: oracle
oracle: setup-test objects ## 10,000 cases in two labs, with clearway and without: nobody may tell which (as root)
	@$(PYTHON) -m tests.oracle $(ORACLE_ARGS)

.PHONY: lint
lint: setup-lint objects bench-objects test-objects ## ruff, mypy --strict, layers, clang-format, clang warnings, shellcheck
	@$(PYTHON) -m ruff check $(PYTHON_SOURCES)
	@$(PYTHON) -m ruff format --check $(PYTHON_SOURCES)
	@$(PYTHON) -m mypy $(PYTHON_SOURCES)
	@.venv/bin/lint-imports --no-logo
	@$(PYTHON) tools/configuration_reference.py --check
	@clang-format --dry-run -Werror $(C_SOURCES)
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_SOURCES); else echo "shellcheck is not there: shell scripts not checked"; fi

.PHONY: format
format: setup-lint ## puts Python and C into the form that lint asks for
	@$(PYTHON) -m ruff check --select I --fix --quiet $(PYTHON_SOURCES)
	@$(PYTHON) -m ruff format $(PYTHON_SOURCES)
	@clang-format -i $(C_SOURCES)

.PHONY: demo
demo: setup-demo objects ## the main job on real traffic, beside Linux alone (as root)
	@.venv/bin/clearway demo

.PHONY: bench
bench: setup-bench objects bench-objects ## Linux and clearway side by side; table and JSON in build/bench/ (as root)
	@$(PYTHON) -m bench

.PHONY: bench-flows
bench-flows: setup-bench objects bench-objects ## the flow table at a million connections; tables and JSON in build/bench/ (as root)
	@$(PYTHON) -m bench.flows $(BENCH_ARGS)

.PHONY: bench-classifier
bench-classifier: setup-bench objects bench-objects ## the first of up to 100,000 rules; tables and JSON in build/bench/ (as root)
	@$(PYTHON) -m bench.classifier

.PHONY: bench-firewall
bench-firewall: setup-bench objects bench-objects ## up to 100,000 firewall rules, nftables and iptables beside; tables and JSON in build/bench/ (as root)
	@$(PYTHON) -m bench.firewall

.PHONY: bench-ddos
bench-ddos: setup-bench objects bench-objects ## what lists of a million prefixes cost; tables and JSON in build/bench/ (as root)
	@$(PYTHON) -m bench.ddos

.PHONY: bench-transparent
bench-transparent: setup-bench objects bench-objects ## a Linux router and containers, plain and with clearway; tables and JSON in build/bench/ (as root)
	@$(PYTHON) -m bench.transparent $(BENCH_ARGS)

.PHONY: bench-transparent-vm
bench-transparent-vm: setup-vm-test objects bench-objects ## instructions per packet beside nf_flowtable and IPVS, on Debian's kernel 6.18
	@tools/bench-transparent-vm

.PHONY: vm-test
vm-test: setup-vm-test objects ## one case of each packet test and one run of the lab on Debian's kernels 6.1 and 6.12
	@tools/vm-test

.PHONY: docs
docs: setup-build ## writes docs/configuration.md from the models
	@$(PYTHON) tools/configuration_reference.py

.PHONY: wheel
wheel: setup-build ## dist/clearway-VERSION-py3-none-any.whl, BPF objects inside
	@$(UV) build --quiet --wheel --no-build-isolation --python $(PYTHON) --out-dir dist .
	@ls dist/*.whl

.PHONY: lock
lock: setup-build ## requirements.lock anew from pyproject.toml
	@$(UV) pip compile --quiet --upgrade pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
		--output-file requirements.lock

.PHONY: clean
clean: ## removes what was built; the environment in .venv stays
	@rm -rf build dist src/clearway/datapath/objects .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find src tests bench tools -name __pycache__ -prune -exec rm -rf {} +

# ---- steps of the above ----

setup-%:
	@tools/setup $*

.PHONY: objects
objects:
	@$(PYTHON) tools/build_bpf.py

.PHONY: bench-objects
bench-objects:
	@$(PYTHON) tools/build_bpf.py bench

.PHONY: test-objects
test-objects:
	@$(PYTHON) tools/build_bpf.py tests
