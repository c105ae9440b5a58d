# Every target sets up what it needs, in .venv (and .venv-parity for the one suite that needs
# PyTorch), and reuses it afterwards. `make` alone lists the targets.
#   PYTHON=python3.12   the interpreter of a new environment        ARGS="..."   more arguments for the command

PYTHON ?= python3
export PYTHON
ARGS ?=

VENV := .venv
VENV_PARITY := .venv-parity
VENV_SKYRL := .venv-skyrl
# On PyTorch only because the package imports it; version 0.4 of skyrl needs Python 3.12.
SKYRL := 'torch==2.13.0' 'skyrl[jax,tinker]==0.3.0'
PYTEST := $(VENV)/bin/python -m pytest
# Mostly compilation, one core each. A file stays in one process: its fixtures are set up once.
# A process takes up to 4 GB.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo demo-compress test test-all test-parity test-docker lint format protos bench bench-peer clean environment-demo environment-dev environment-slow environment-parity
MAKEFLAGS += --no-print-directory

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

environment-demo:
	@scripts/environment.sh $(VENV) plot
environment-dev:
	@scripts/environment.sh $(VENV) dev,plot
environment-slow:
	@scripts/environment.sh $(VENV) dev,plot,slow
# Apart from .venv: `make test` thereby keeps proving that nothing but this suite needs PyTorch.
environment-parity:
	@scripts/environment.sh $(VENV_PARITY) dev,parity

demo: environment-demo ## distil a small model into itself and print what it learned (ARGS="--steps 3 --out DIR")
	@echo "==> distill demo $(ARGS)"
	@$(VENV)/bin/distill demo $(ARGS)

demo-compress: environment-demo ## prune a small model to half its layers and win back what it lost (ARGS="--steps 3 --out DIR")
	@echo "==> distill demo-compress $(ARGS)"
	@$(VENV)/bin/distill demo-compress $(ARGS)

test: environment-dev ## the tests that every change must pass
	@echo "==> pytest $(PARALLEL)"
	@$(PYTEST) $(PARALLEL) $(ARGS)

test-all: environment-slow environment-parity ## test, with the slow suites and the comparison with PyTorch
	@echo "==> pytest --run-slow $(PARALLEL)"
	@$(PYTEST) $(PARALLEL) --run-slow $(ARGS)
	@$(MAKE) test-parity

test-parity: environment-parity ## compare models, gradients and exports with Transformers on PyTorch
	@echo "==> pytest --run-parity"
	@$(VENV_PARITY)/bin/python -m pytest $(PARALLEL) --run-parity -m parity $(ARGS)

test-docker: environment-dev ## build the images and run the compose file on a container engine
	@echo "==> pytest --run-docker"
	@$(PYTEST) --run-docker -m docker -sv tests/docker $(ARGS)

lint: environment-dev ## style, types, contract
	@echo "==> ruff check"
	@$(VENV)/bin/ruff check --quiet .
	@echo "==> ruff format --check"
	@$(VENV)/bin/ruff format --quiet --check .
	@echo "==> mypy --strict"
	@$(VENV)/bin/mypy
	@echo "==> buf lint"
	@$(VENV)/bin/buf lint
	@echo "==> buf breaking"
	@scripts/check_breaking.sh $(VENV)/bin/buf
	@echo "==> hadolint"
	@$(VENV)/bin/hadolint docker/Dockerfile

format: environment-dev ## rewrite the Python code in the project's style
	@$(VENV)/bin/ruff check --quiet --fix .
	@$(VENV)/bin/ruff format .

protos: ## generate distill/v1 from protos/
	@echo "==> protos/generate.sh"
	@protos/generate.sh

bench: environment-dev ## measure beside plain JAX, PyTorch and skyrl (ARGS="--quick --json FILE --only NAME")
	@echo "==> benchmarks, with memory in large pages for all sides, as in services that the client or the images start"
	@GLIBC_TUNABLES="$${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}" $(VENV)/bin/python -m benchmarks $(ARGS)

# Never a dependency: it lives in an environment of its own and is spoken to through pipes.
bench-peer: ## install skyrl's JAX backend for make bench; PyTorch: make environment-parity
	@test -x $(VENV_SKYRL)/bin/pip || $(PYTHON) -m venv $(VENV_SKYRL)
	@echo "==> installing $(SKYRL) into $(VENV_SKYRL)"
	@$(VENV_SKYRL)/bin/pip install -qq --disable-pip-version-check --no-input $(SKYRL)

clean: ## remove the environments, caches and outputs that the targets made
	rm -rf .venv .venv-parity .venv-protos .venv-skyrl build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
