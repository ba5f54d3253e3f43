# Thin lines over `python -m toolbox`, pytest and the linters; `make` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo "$$name" && break; done)
VENV := .venv/bin
TOOLBOX := $(VENV)/python -m toolbox
# Where Python may keep nothing, each of some thousand commands would compile this project again.
KEEPING_BYTECODE := env -u PYTHONDONTWRITEBYTECODE
PYTEST := $(KEEPING_BYTECODE) $(VENV)/pytest
SHELL_FILES := .ci/run

.PHONY: help
help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18
	@echo "Commands about a stack take STACK=NAME, and mean dev without it; ARGS=--help shows what else."

.DEFAULT:
	@echo "error: there is no make $@; make lists what there is" >&2; exit 2

# Until the command itself hears interrupts, nobody does: so none of them ends in a stack trace.
run = @trap '' INT; exec $(TOOLBOX) $@

.PHONY: up
up: .venv/ready ## bring the dev stack up on this machine, and pull from it as a client does
	$(run)

.PHONY: down
down: .venv/ready ## stop the dev server, its builder and its client
	$(run)

.PHONY: clean
clean: .venv/ready ## stop them, and remove .dev: the dev server's stacks, with all data
	$(run)

.PHONY: shell
shell: .venv/ready ## a terminal on a client of the dev stack's cache
	$(run)

.PHONY: pulumi
pulumi: .venv/ready ## run pulumi on a stack: make pulumi ARGS="config set retentionDays 14"
	$(run)

.PHONY: push
push: .venv/ready ## let a stack's builders push again now; BUILDER=NAME lets one, and places its credential files anew
	$(run)

.PHONY: pull
pull: .venv/ready ## pull what was pushed into an empty store, as a client does, and verify it
	$(run)

.PHONY: status
status: .venv/ready ## show builders, pins and what expires when: make status STACK=homelab
	$(run)

.PHONY: report
report: .venv/ready ## draw the same as a page: make report STACK=homelab
	$(run)

.PHONY: audit
audit: .venv/ready ## read a cache back as clients do: make audit STACK=homelab ARGS="--hash all"
	$(run)

.PHONY: drift
drift: .venv/ready ## tell whether the server is as a stack declared it
	$(run)

.PHONY: repair
repair: .venv/ready ## put right what drift found
	$(run)

.PHONY: check-server
check-server: .venv/ready ## tell whether an S3 server can keep the promises: make check-server STACK=homelab
	$(run)

.PHONY: empty
empty: .venv/ready ## remove what a stack's bucket holds, once you typed its name
	$(run)

.PHONY: import
import: .venv/ready ## copy paths of another cache: make import FROM=https://old KEYS=old-1:… PATHS=FILE
	$(run)

.PHONY: preview-markdown
preview-markdown: .venv/ready ## report a preview as Markdown
	$(run)

.PHONY: stack
stack: .venv/ready ## a stack of its own names: make stack NAME=staging [SERVER=dev]
	$(run)

.PHONY: bench-preview
bench-preview: .venv/ready ## time previews of 1, 10 and 50 builders: build/bench-preview.json
	@$(KEEPING_BYTECODE) $(VENV)/python -m benchmarks.bench_preview

.PHONY: bench-push
bench-push: prepare ## time pushes against nix copy and the recipe: build/bench-push.json
	@$(KEEPING_BYTECODE) $(VENV)/python -m benchmarks.bench_push

.PHONY: bench-load
bench-load: prepare ## 50 clients pull while 5 builders push, for 10 minutes: build/promises.json
	@$(KEEPING_BYTECODE) $(VENV)/python -m benchmarks.bench_load

.PHONY: bench-audit
bench-audit: .venv/ready ## time the audit of 10,000 narinfos: build/bench-audit.json
	@$(KEEPING_BYTECODE) $(VENV)/python -m benchmarks.bench_audit

.PHONY: bench-status
bench-status: .venv/ready ## time the status of 10,000 entries: build/bench-status.json
	@$(KEEPING_BYTECODE) $(VENV)/python -m benchmarks.bench_status

.PHONY: tools
tools: .venv/ready ## get the tools and say where each came from
	$(run)

.PHONY: prepare
prepare: .venv/ready ## get everything that the tests need
	$(run)

.PHONY: check
check: lint ## linters, types and unit tests: under a minute
	$(PYTEST) --quiet tests/unit

.PHONY: lint
lint: .venv/ready ## linters and types
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/shellcheck $(SHELL_FILES)
	@linter=$$($(TOOLBOX) workflow-linter) && "$$linter" -shellcheck $(VENV)/shellcheck
	$(VENV)/zizmor --offline --quiet .github/workflows action.yml

.PHONY: sbom
sbom: .venv/ready ## print what it is made of, as CycloneDX: make sbom > sbom.json
	$(run)

.PHONY: vulnerabilities
vulnerabilities: .venv/ready ## ask what is known against what it is made of: needs the network
	$(run)

.PHONY: test
test: prepare ## all tests: the real engine, server, Nix and SSH
	$(PYTEST) --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 30

.PHONY: test-servers
test-servers: prepare ## the program on every S3 server that can be had: build/servers.json
	$(PYTEST) -m '' tests/system/servers

.PHONY: conformance
conformance: prepare ## compare the drop-in plugins with the official ones: build/conformance.json
	@$(VENV)/python -m tests.plugins.conformance

.venv/ready: requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer on PATH; install one" >&2; exit 1; }
	@trap '' INT; exec $(PYTHON) -m toolbox.python_packages
