# Each target does its own set-up, from a fresh clone on. What the set-up says goes to stderr, so
# stdout holds what the program prints and nothing else: make demo ARGS="--once -o json" | jq .

MAKEFLAGS += --no-print-directory
export PATH := $(CURDIR)/.cache/uv/bin:$(PATH)
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= true
endif
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench setup controlplane clean

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 14

demo: ## see the whole idea work, without an account (ARGS="--once -o json")
	@scripts/bootstrap.sh run
	@exec .venv/bin/gp4u demo $(ARGS)

test: ## lint, then every test (ARGS goes to pytest, and leaves the tests in Kubernetes out)
	@scripts/bootstrap.sh dev
	@scripts/setup-container-engine.sh >&2
	@scripts/setup-databases.sh >&2
	@scripts/setup-promtool.sh >&2
	@scripts/setup-image.sh >&2
	@PYTHON=$(CURDIR)/.venv/bin/python tests/contract/setup-vastai-cli.sh >&2
	@scripts/setup-controlplane.sh >&2
	@$(MAKE) lint >&2
	@.venv/bin/pytest -n 2 --ignore tests/kube $(ARGS)
	@$(if $(ARGS),,exec scripts/namespace.sh .venv/bin/pytest -n 2 --dist loadfile tests/kube)

lint: ## format, style, types, layers
	@scripts/bootstrap.sh dev
	@.venv/bin/ruff format --check --quiet .
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy --no-error-summary
	@said=$$(.venv/bin/lint-imports --no-logo --no-cache 2>&1) || { echo "$$said"; exit 1; }

bench: ## measure, each against its yardstick; fails where a bound is missed
	@scripts/bootstrap.sh dev
	@scripts/setup-controlplane.sh >&2
	@for each in bench/bench_*.py; do .venv/bin/python $$each $(ARGS) || exit 1; done

setup: ## .venv with everything, for working on GP4U
	@scripts/bootstrap.sh dev

controlplane: ## build the Kubernetes that the tests need, into ~/.cache
	@scripts/bootstrap.sh dev
	@scripts/setup-controlplane.sh

clean: ## remove what the targets made
	@rm -rf .venv .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
