# Thin lines over `python -m toolbox`, pytest and the linters; `make` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON := $(shell for name in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo "$$name" && break; done)
VENV := .venv/bin
TOOLBOX := $(VENV)/python -m toolbox
PYTEST := $(VENV)/pytest
SHELL_FILES := .ci/run

.PHONY: help
help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: up
up: .venv/ready ## bring up the dev stack on this machine; prints what a client pastes
	@$(TOOLBOX) up

.PHONY: down
down: .venv/ready ## stop the dev stack's server and builder
	@$(TOOLBOX) down

.PHONY: clean
clean: .venv/ready ## stop them, and remove .dev with all data
	@$(TOOLBOX) clean

.PHONY: pulumi
pulumi: .venv/ready ## run pulumi on the dev stack: make pulumi ARGS="preview"
	@$(TOOLBOX) pulumi "$(ARGS)"

.PHONY: audit
audit: .venv/ready ## read a cache back as clients do: make audit STACK=homelab ARGS="--hash all"
	@$(if $(filter-out dev,$(STACK)),$(VENV)/python -m operations.audit --stack "$(STACK)" $(ARGS), \
		$(TOOLBOX) audit "$(ARGS)")

.PHONY: drift
drift: .venv/ready ## tell whether the server is as a stack declared it: make drift STACK=homelab
	@$(if $(filter-out dev,$(STACK)),$(VENV)/python -m operations.drift --stack "$(STACK)", \
		$(TOOLBOX) drift "")

.PHONY: repair
repair: .venv/ready ## put back what differs on a stack's server: make repair STACK=homelab
	@$(if $(filter-out dev,$(STACK)),$(VENV)/python -m operations.repair --stack "$(STACK)" $(ARGS), \
		$(TOOLBOX) repair "$(ARGS)")

.PHONY: push
push: .venv/ready ## let a stack's builders push again now: make push STACK=homelab ARGS=nixbuilder
	@$(if $(filter-out dev,$(STACK)),$(VENV)/python -m operations.push --stack "$(STACK)" $(ARGS), \
		$(TOOLBOX) push "$(ARGS)")

.PHONY: empty
empty: .venv/ready ## remove what a stack's bucket holds, once you typed its name: make empty STACK=homelab
	@$(if $(filter-out dev,$(STACK)),$(VENV)/python -m operations.empty --stack "$(STACK)" $(ARGS), \
		$(TOOLBOX) empty "$(ARGS)")

.PHONY: preview-markdown
preview-markdown: .venv/ready ## report a preview as Markdown: make preview-markdown STACK=homelab
	@$(if $(filter-out dev,$(STACK)), \
		$(VENV)/python -m operations.preview_markdown --stack "$(STACK)", \
		$(TOOLBOX) preview-markdown "")

.PHONY: stack
stack: ## a stack of its own names beside the others: make stack NAME=staging
	@test -n "$(NAME)" || { echo "error: NAME is missing; write make stack NAME=staging" >&2; exit 1; }
	@pulumi stack init "$(NAME)"
	@pulumi config set --stack "$(NAME)" bucket "nix-cache-$(NAME)"
	@pulumi config set --stack "$(NAME)" --path 'signingKeyDomains[0]' "nix-cache-$(NAME)"
	@pulumi config set --stack "$(NAME)" --path 'signingKeys[0]' "nix-cache-$(NAME)-1"
	@echo "Pulumi.$(NAME).yaml names a bucket and a key of its own; docs/environments.md has the rest"

.PHONY: bench-preview
bench-preview: .venv/ready ## time previews of 1, 10 and 50 builders: build/bench-preview.json
	@$(VENV)/python -m benchmarks.bench_preview

.PHONY: bench-push
bench-push: prepare ## time pushes against nix copy and the recipe: build/bench-push.json
	@$(VENV)/python -m benchmarks.bench_push

.PHONY: bench-audit
bench-audit: .venv/ready ## time the audit of 10,000 narinfos: build/bench-audit.json
	@$(VENV)/python -m benchmarks.bench_audit

.PHONY: tools
tools: .venv/ready ## get the tools and say where each came from
	@$(TOOLBOX) tools

.PHONY: prepare
prepare: .venv/ready ## get everything that the tests need
	@$(TOOLBOX) prepare

.PHONY: check
check: .venv/ready ## lint, types and unit tests: under a minute
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/shellcheck $(SHELL_FILES)
	"$$($(VENV)/python -c 'from toolbox import tools; print(tools.workflow_linter().path)')" -shellcheck $(VENV)/shellcheck
	$(VENV)/zizmor --offline --quiet .github/workflows
	$(PYTEST) --quiet tests/unit

.PHONY: test
test: prepare ## all tests: the real engine, server, Nix and SSH
	$(PYTEST) --numprocesses 3 --dist loadfile

.PHONY: conformance
conformance: prepare ## compare the drop-in plugins with the official ones: build/conformance.json
	@$(VENV)/python -m tests.plugins.conformance

.venv/ready: requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 or newer on PATH; install one" >&2; exit 1; }
	@test -x $(VENV)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing the Python packages into .venv" >&2
	@$(VENV)/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
