"""Communicators: agreement on errors, and the ranks that are threads."""

from __future__ import annotations

import pytest

from mpisparse.comm import Communicator, agreed, require_same, run_ranks, solo
from mpisparse.comm.launcher import check_promise, prepare_environment, promised_size, speaks
from mpisparse.errors import CommError, ConfigError, DataError, LaunchError, RankMismatchError


def fail(really: bool) -> None:
    if really:
        raise DataError("file x is damaged")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_an_error_of_one_rank_becomes_that_of_all(size: int) -> None:
    culprit = size - 1

    def one(comm: Communicator) -> str:
        with pytest.raises(DataError) as raised, agreed(comm):
            fail(comm.rank == culprit)
        assert raised.value.on_all_ranks
        with agreed(comm):
            pass
        return str(raised.value)

    expected = f"rank {culprit} of {size}: file x is damaged" if size > 1 else "file x is damaged"
    assert run_ranks(size, one) == [expected] * size


def test_an_error_of_all_ranks_is_not_blamed_on_one() -> None:
    def one(comm: Communicator) -> str:
        with pytest.raises(ConfigError) as raised, agreed(comm):
            raise ConfigError("density 2 is outside (0, 1]")
        return str(raised.value)

    assert run_ranks(3, one) == ["density 2 is outside (0, 1]"] * 3


def test_a_difference_is_named() -> None:
    def one(comm: Communicator) -> str:
        lines = ["a", "b"] if comm.rank < 2 else ["a", "b", "c"]
        with pytest.raises(RankMismatchError) as raised:
            require_same(comm, "the lists", lines)
        return str(raised.value)

    for text in run_ranks(3, one):
        assert "number 2 is nothing more on rank 0 but c on rank 2" in text


def test_a_rank_that_leaves_ends_the_group() -> None:
    def one(comm: Communicator) -> None:
        if comm.rank == 1:
            raise ValueError("gone")
        comm.barrier()

    with pytest.raises(ValueError, match="gone"):
        run_ranks(3, one)


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever() -> None:
    def one(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.barrier()

    with pytest.raises(CommError, match=r"rank 0: another rank left, or did not come within 0\.1 s"):
        run_ranks(2, one, timeout=0.1)


def test_what_the_launcher_promised_is_found_nearest_first() -> None:
    assert promised_size({}) is None
    assert promised_size({"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "2"}) == (
        4, "mpirun of MPICH or Intel MPI, or srun --mpi=pmi2 (PMI_SIZE=4)",
    )  # fmt: skip
    check_promise(1, "MPICH", {})
    check_promise(1, "MPICH", {"PMI_SIZE": "1"})
    check_promise(2, "MPICH", {"PMI_SIZE": "4"})
    with pytest.raises(LaunchError, match="4 ranks were promised by srun"):
        check_promise(1, "MPICH", {"SLURM_STEP_NUM_TASKS": "4"})


def test_the_users_environment_wins() -> None:
    name = "MPIR_CVAR_ALLGATHERV_PIPELINE_MSG_SIZE"
    environ = {name: "5"}
    prepare_environment(environ)
    assert environ == {name: "5"}
    environ = {}
    prepare_environment(environ)
    assert environ == {name: str(2**30)}


def test_one_process_speaks_before_mpi_is_up() -> None:
    assert speaks({})
    assert speaks({"PMI_RANK": "0"})
    assert not speaks({"OMPI_COMM_WORLD_RANK": "3"})


def test_alone_everything_comes_back() -> None:
    comm = solo()
    assert comm.allgather([3, 4]).tolist() == [[3, 4]]
    assert comm.allgather_bytes(b"x") == [b"x"]
    assert comm.duplicate().size == 1
