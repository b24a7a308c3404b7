# Everything a newcomer needs: `make demo` and `make test` set themselves up with nothing but Python 3.11+.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
SECONDS ?= 60
FILES   ?= tests/integration tests/sync

# Hundreds of tests start Python processes; without kept bytecode each of these compiles the library anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo test long lint docs bench scale chaos cluster docker deploy-check kubernetes kubernetes-api mutants versions proto clean
help:
	@echo "make demo | test | long | lint | docs | bench | scale | chaos SECONDS=600 | cluster | docker | deploy-check | kubernetes-api | kubernetes | mutants | versions | proto | clean"

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/codomyrmex concurrency demo

# Five at a time on two cores: half of what a test takes is waiting.
test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 5 --dist worksteal -m "not long and not chaos and not cluster and not docker and not deploy and not kubernetes"

# Leases that run out, processes that are killed, the pages' commands, the examples; some four minutes.
long: $(VENV)/.ready
	$(BIN)/python -m pytest -n 4 --dist worksteal -m long

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.typing
	$(BIN)/python -m tests.words
	$(BIN)/lint-imports

# The site goes to build/docs. An environment of its own: two dozen packages that no test needs.
$(VENV)-docs/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)-docs/.ready
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet

# An environment of its own: one of the peers and the gateway's library call themselves by one name.
$(VENV)-bench/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

bench: $(VENV)-bench/.ready
	$(VENV)-bench/bin/python -m benchmarks $(BENCH)

# How cost grows with size; some ten minutes.
scale: $(VENV)-bench/.ready
	$(VENV)-bench/bin/python -m benchmarks.scale $(BENCH)

chaos: $(VENV)/.ready
	CHAOS_SECONDS=$(SECONDS) $(BIN)/python -m pytest -m chaos -s --timeout=0 --ignore=tests/chaos/documents/test_scenarios.py
	$(BIN)/python -m pytest -m chaos --timeout=0 -n 2 --dist worksteal tests/chaos/documents/test_scenarios.py

# Most of these wait for elections and leases, so they go two at a time; those of the wire need the whole machine.
cluster: $(VENV)/.ready
	$(BIN)/python -m pytest -m cluster tests/integration/test_wire.py
	$(BIN)/python -m pytest -m cluster -n 2 --dist worksteal --ignore=tests/integration/test_wire.py

# The suite against etcd in a container, then three members in containers; needs a Docker engine, and pulls nothing.
docker: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[containers,deploy]'
	$(BIN)/python -m pytest --etcd=testcontainers $(FILES) -n 4 --dist worksteal \
	  -m "not long and not chaos and not cluster and not docker"
	$(BIN)/python -m pytest -m docker

deploy-check: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[deploy,containers]'
	$(BIN)/python -m pytest -m deploy

# A real API server with the real CRDs; then a cluster of three nodes. Both need root and Go, and build what is missing
# from Go modules: some minutes at the first run. Everything lies in ~/.cache/codomyrmex-kubernetes.
kubernetes-api: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[deploy]'
	$(BIN)/python -m pytest -m kubernetes tests/kubernetes/test_accepted.py

kubernetes: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[deploy]'
	$(BIN)/python -m pytest -m kubernetes -s tests/kubernetes

versions: $(VENV)/.ready
	$(BIN)/python -m tests.versions

mutants: $(VENV)/.ready
	$(BIN)/python -m tests.mutants
	$(BIN)/python -m tests.mutants --documents

# The pinned generator is the last whose output every protobuf runtime from 5 to 7 accepts.
proto:
	$(PYTHON) -m venv .proto-venv
	.proto-venv/bin/pip install --quiet 'grpcio-tools==1.62.3' 'setuptools<80'
	cd src && ../.proto-venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. codomyrmex/concurrency/etcd/rpc.proto
	rm -rf .proto-venv

clean:
	rm -rf $(VENV) $(VENV)-bench $(VENV)-docs .proto-venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
