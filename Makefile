# `make` prints this help. Every target does what it needs from a bare machine.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 60
FAST := -m "not docker and not netns and not e2e and not process and not cluster"
NODES ?= 0
export PYTHONPATH := $(CURDIR):$(CURDIR)/gen
export NODES

.DEFAULT_GOAL := help
.PHONY: help up demo down clean test check cluster-up cluster-down cluster-test kill-matrix soak bench doctor lint proto proto-lock lock peers critest

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/.ready tripod ## Bring the node up; installs and builds what is missing
	@$(PYTHON) -m tools.up

demo: tripod ## Run the examples: pods, a service, a restart, an unready pod, a trace
	@$(PYTHON) -m tools.demo

down: ## Remove every pod, rule and bridge of ours, and the services; keep the state
	@$(PYTHON) -m tools.down

clean: ## The same, and remove the state and our images
	@$(PYTHON) -m tools.down --all

check: $(VENV)/.ready proto ## Format, lint, types, import contracts, proto lint, fast tests; no engine needed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python -m pytest -q -n 3 $(FAST) tests

test: check ## Everything: also the engine, network namespaces and the composed node
	@nice $(PYTHON) -m tests.peers.build --for-tests
	@$(PYTHON) -m tools.programs
	@$(PYTHON) -m tools.up
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "(docker or netns or process) and not e2e and not cluster" tests
	$(BIN)/python -m pytest -q -m cluster tests
	$(BIN)/python -m pytest -q -m e2e tests

cluster-up: $(VENV)/.ready tripod ## A Kubernetes control plane, this machine as its node, and NODES=n more in namespaces
	@$(BIN)/python -m tools.cluster.up

cluster-down: $(VENV)/.ready ## End that cluster and remove all of it
	@$(BIN)/python -m tools.cluster.down

cluster-test: $(VENV)/.ready proto ## Two nodes of ours joined to a Kubernetes control plane, as root
	@nice $(PYTHON) -m tests.peers.build --for-tests
	@$(PYTHON) -m tools.programs
	$(BIN)/python -m pytest -q -m cluster tests

kill-matrix: $(VENV)/.ready proto ## Kill every service at each step of its work, and check what must hold
	@$(PYTHON) -m tools.programs
	$(BIN)/python -m tests.matrix kubelet lifecycle proxy proxy-cluster cadvisor --least 200

soak: $(VENV)/.ready proto ## The kill matrix on a real engine, then MINUTES=60 of random kills and faults
	@$(PYTHON) -m tools.programs
	@$(PYTHON) -m tools.up
	$(BIN)/python -m tests.matrix engine cri --least 120
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

bench: $(VENV)/.ready proto ## Measure beside a floor or a peer: NAME=pod_start|proxy_scale|cadvisor|idle|logs [JSON=FILE]
	@$(PYTHON) -m tools.programs
	$(BIN)/python -m bench $(NAME) $(if $(JSON),--json $(JSON))

doctor: tripod ## Check the host and the node; each finding with its fix
	@./tripod doctor

lint: $(VENV)/.ready proto ## Mend format and what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.ready ## Generate the stubs in gen/ when a contract changed
	@$(BIN)/python -m tools.gen_protos --if-stale

proto-lock: proto ## Write protos/wire_lock.txt anew, after a meant change of a contract
	$(BIN)/python -m tools.wire_lock --write

lock: $(VENV)/.ready ## Lock the dependencies anew
	$(BIN)/uv lock --upgrade
	$(BIN)/uv export -q --no-dev --no-emit-project --format requirements-txt -o requirements.txt
	$(BIN)/uv export -q --no-emit-project --format requirements-txt -o requirements-dev.txt
	$(BIN)/uv export -q --only-group build --format requirements-txt -o requirements-build.txt

peers: ## Build Kubernetes' control plane, kubectl, client-go, crictl, critest and grpcurl, as Go modules
	@nice $(PYTHON) -m tests.peers.build
	@ls .peers

critest: $(VENV)/.ready proto peers ## The CRI validation suite on our CRI server alone: ARGS="--websocket --parallel 4 --runs 10 --benchmark"
	@$(PYTHON) -m tools.programs --critest
	$(BIN)/python -m tests.critest $(ARGS)

$(VENV)/.ready: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, not %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing Debian package python3-venv"; apt-get update -q >/dev/null; apt-get install -y -q python3-venv >/dev/null; \
	    $(PYTHON) -m venv $(VENV); \
	  else echo "Python's venv module is missing: install python3-venv"; exit 1; fi; }
	@echo "  Installing what tools and tests need into $(VENV) ..."
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

tripod: $(VENV)/.ready proto
	@printf '#!/bin/sh\nd=$$(dirname "$$(readlink -f "$$0")")\nPYTHONPATH="$$d:$$d/gen" exec "$$d/.venv/bin/python" -m cli "$$@"\n' > tripod
	@chmod 0755 tripod
