"""The laws that hold on any number of ranks, each a function of the communicator.

tests/unit/test_laws.py runs them on threads, tests/mpi/test_laws.py on real ranks. Data encode the rank.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import mpisparse as ms
from mpisparse.collectives import BFloat16Pieces
from mpisparse.comm import Communicator
from mpisparse.kernels.anywhere import on_host
from mpisparse.sparsifiers import Sparsifier

Vector = NDArray[np.float32]

RULES: tuple[Sparsifier, ...] = (
    ms.Dense(),
    ms.TopK(density=0.1),
    ms.Threshold(threshold=2.0),
    ms.Uniform(density=0.2),
    ms.GSpar(density=0.2),
    ms.GSpar(variance=0.5),
    ms.GSpar(density=0.2, iterations=2),
    ms.QSGD(bits=3, bucket=50),
    ms.TernGrad(),
)
#: A rule that remembers: what it sends is not a function of the vector alone.
TRACKED = ms.TrackedTopK(density=0.1, band=0.3, every=3)
LAYOUTS = (
    ms.Layout(),
    ms.Layout(granularity="tensor", dense_vectors=False),
    ms.Layout(granularity="bucket", bucket_mib=0.0002, dense_below=10),
)


class Net(nn.Module):
    """A small net with matrices, vectors and a buffer, the same on all ranks."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(7, 11, generator=generator))
        self.bias = nn.Parameter(torch.randn(7, generator=generator))
        self.second = nn.Parameter(torch.randn(3, 7, generator=generator))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs @ self.first.T + self.bias) @ self.second.T


def wrap(
    comm: Communicator, model: nn.Module, rule: Sparsifier, lr: float = 0.1, **options: object
) -> ms.DistributedOptimizer:
    plain = torch.optim.SGD(model.parameters(), lr=lr)
    return ms.DistributedOptimizer(plain, model, sparsifier=rule, comm=comm, **options)  # type: ignore[arg-type]


def gradient(step: int, rank: int, numel: int) -> Vector:
    """Return whole numbers that differ by rank and step; on odd ranks every third step is all zero."""
    generator = np.random.default_rng([step, rank])
    scale = 0 if rank % 2 and step % 3 == 2 else 1
    return (generator.integers(-8, 9, numel) * scale).astype(np.float32)


def set_gradients(model: nn.Module, vector: Vector) -> None:
    start = 0
    for parameter in model.parameters():
        parameter.grad = torch.from_numpy(vector[start : start + parameter.numel()].copy()).view(parameter.shape)
        start += parameter.numel()


def gradients(model: nn.Module) -> Vector:
    return np.concatenate([p.grad.numpy().reshape(-1) for p in model.parameters() if p.grad is not None])


def parameters(model: nn.Module) -> Vector:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in model.parameters()])


def averaged(optimizer: ms.DistributedOptimizer) -> Vector:
    """Return the flat buffer on the host: what was averaged, once it was."""
    return on_host(optimizer.flat.vector)


def kept_vectors(optimizer: ms.DistributedOptimizer) -> dict[str, Vector]:
    """Return what the memory keeps, on the host."""
    return {name: on_host(vector) for name, vector in optimizer.exchange.kept.vectors().items()}


def everyone(comm: Communicator, vector: Vector) -> list[Vector]:
    """Return the vectors of all ranks."""
    return [np.frombuffer(text, np.float32) for text in comm.allgather_bytes(vector.tobytes())]


def train(comm: Communicator, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    """Take steps on samples that differ by rank and step; rank 1 has none now and then."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(1000 * step + comm.rank)
        count = 0 if comm.size > 1 and comm.rank == 1 and step % 4 == 3 else 5
        inputs = torch.randn(count, 11, generator=generator)
        optimizer.zero_grad()
        if count:
            model(inputs).square().mean().backward()
        optimizer.step()


def law_conservation(comm: Communicator) -> None:
    """What went in equals what was applied plus what the residuals hold, per coordinate."""
    for layout in LAYOUTS:
        for values in ("float32", "bfloat16", "float16", "sign"):
            model = Net()
            rule = TRACKED if values == "bfloat16" else ms.TopK(density=0.05)
            optimizer = wrap(comm, model, rule, wire=ms.Wire(values), layout=layout)
            numel = optimizer.flat.buffer.numel()
            went_in, applied = np.zeros(numel), np.zeros(numel)
            for step in range(12):
                set_gradients(model, gradient(step, comm.rank, numel))
                went_in += optimizer_vector(optimizer)
                optimizer.synchronize()
                applied += averaged(optimizer).astype(np.float64)
                optimizer.step()
            residual = kept_vectors(optimizer)["residual"]
            went_in[: residual.size] -= residual
            kept = sum(v.astype(np.float64) for v in everyone(comm, went_in.astype(np.float32)))
            np.testing.assert_allclose(applied * comm.size, kept, atol=1e-3)
            assert np.abs(residual).max() > 0


def optimizer_vector(optimizer: ms.DistributedOptimizer) -> Vector:
    """Return the gradients in the order of the flat buffer."""
    optimizer.flat.collect()
    return averaged(optimizer).copy()


def law_sum_is_that_of_the_messages(comm: Communicator) -> None:
    """The exchange gives exactly the mean of what each rank selected, whatever it selected."""
    for rule in RULES:
        model = Net()
        optimizer = wrap(comm, model, rule, layout=ms.Layout(dense_vectors=False), seed=3)
        numel = optimizer.flat.buffer.numel()
        for step in range(4):
            kept = kept_vectors(optimizer).get("residual")
            residual = np.zeros(numel, np.float32) if kept is None else kept.copy()
            corrected = residual + gradient(step, comm.rank, numel)
            chosen = rule.select(corrected, ms_generator(3, comm.rank, step))
            expected = np.zeros(numel, np.float32)
            for theirs in everyone(comm, chosen.to_dense()):
                expected += theirs
            set_gradients(model, gradient(step, comm.rank, numel))
            optimizer.step()
            np.testing.assert_array_equal(averaged(optimizer), expected / np.float32(comm.size))


def ms_generator(seed: int, rank: int, step: int) -> np.random.Generator:
    from mpisparse.random import generator

    return generator(seed, rank, step, 0)


def law_density_one_is_dense(comm: Communicator) -> None:
    """Density 1.0 equals the dense path, bit for bit; so does the coded path when every entry is sent."""

    class Everything(ms.TopK):
        """Sends all entries as messages, never by the dense path."""

        sends_everything = False

    class EverythingUnbiased(ms.GSpar):
        sends_everything = False

    reference: Vector | None = None
    for rule in (
        ms.Dense(),
        ms.TopK(1.0),
        ms.GSpar(density=1.0),
        ms.Uniform(1.0),
        Everything(1.0),
        EverythingUnbiased(density=1.0),
    ):
        model = Net()
        train(comm, model, wrap(comm, model, rule), 8)
        reference = parameters(model) if reference is None else reference
        np.testing.assert_array_equal(parameters(model), reference, err_msg=repr(rule))


def law_dense_is_the_mean(comm: Communicator) -> None:
    """The dense path sums in rank order, then divides; Allreduce agrees up to rounding."""
    for dense in ("pieces", "allreduce"):
        model = Net()
        optimizer = wrap(comm, model, ms.Dense(), dense=dense)
        numel = optimizer.flat.buffer.numel()
        noise = np.random.default_rng(comm.rank).standard_normal(numel).astype(np.float32)
        set_gradients(model, noise)
        expected = np.zeros(numel, np.float32)
        for theirs in everyone(comm, noise):
            expected += theirs
        expected /= np.float32(comm.size)
        optimizer.synchronize()
        found = gradients(model)
        if dense == "pieces":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def law_dense_in_bfloat16(comm: Communicator) -> None:
    """Rounded pieces give round(sum in rank order of round(gradient) / ranks) on all ranks, in half the bytes."""
    numel, ties = 1000, np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x00018000, 0x7F7F0000], np.uint32)
    noise = np.random.default_rng(comm.rank).standard_normal(numel).astype(np.float32)
    noise[:5] = ties.view(np.float32) / np.float32(comm.size)
    for segment in (numel, 64, 3):
        vector, expected = noise.copy(), np.zeros(numel, np.float32)
        for theirs in everyone(comm, noise):
            expected += to_bfloat16(theirs)
        received = BFloat16Pieces(comm, segment).average(vector)
        np.testing.assert_array_equal(vector, to_bfloat16(expected / np.float32(comm.size)))
        ring = 2 * (comm.size - 1) * 2 * numel / comm.size
        assert abs(received - ring) <= 2 * comm.size * -(-numel // segment)
        assert all(np.array_equal(vector, other) for other in everyone(comm, vector))


def law_dense_in_bfloat16_is_not_fed_back(comm: Communicator) -> None:
    """A rule at density 1 takes the rounding path too, counts 2 bytes an entry, and leaves nothing in its residual."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(1.0), memory=ms.ErrorFeedback(), dense="bfloat16")
    numel = optimizer.flat.buffer.numel()
    noise = np.random.default_rng(comm.rank).standard_normal(numel).astype(np.float32)
    set_gradients(model, noise)
    optimizer.synchronize()
    found = gradients(model)
    np.testing.assert_array_equal(found, found if comm.size == 1 else to_bfloat16(found))
    assert comm.size > 1 or np.array_equal(found, noise)
    assert optimizer.traffic.payload == 2 * numel
    assert not kept_vectors(optimizer)["residual"].any()
    if comm.size > 1:
        optimizer.zero_grad()
        set_gradients(model, np.full(numel, np.finfo(np.float32).max))
        with pytest.raises(ms.NonFiniteError, match="overflows"):
            optimizer.step()


def to_bfloat16(vector: Vector) -> Vector:
    """Return the nearest float32 values whose lower 16 bits are zero, the even one of two equally near."""
    bits = vector.view(np.uint32).astype(np.uint64)
    lower, upper = bits & np.uint64(0xFFFF), bits >> np.uint64(16)
    up = (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    rounded: Vector = ((upper + up) << np.uint64(16)).astype(np.uint32).view(np.float32)
    return rounded


def law_replicas(comm: Communicator) -> None:
    """After every step all ranks hold bit-identical parameters, also when some send nothing."""
    for rule in (*RULES, TRACKED):
        for layout in LAYOUTS:
            model = Net(seed=comm.rank)  # made different: wrapping gives all of them rank 0's
            optimizer = wrap(comm, model, rule, layout=layout)
            for step in range(4):
                train(comm, model, optimizer, 1, start=step)
                theirs = everyone(comm, parameters(model))
                assert all(np.array_equal(theirs[0], other) for other in theirs), (rule, layout, step)


def law_momentum_correction_replicas_and_conservation(comm: Communicator) -> None:
    """Momentum correction keeps replicas equal, and what was not sent is in its sums."""
    model = Net()
    memory = ms.MomentumCorrection(momentum=0.5, masking=False)
    optimizer = wrap(comm, model, ms.TopK(density=0.1), memory=memory, layout=ms.Layout(dense_vectors=False))
    numel = optimizer.flat.buffer.numel()
    velocity, due, applied = np.zeros(numel), np.zeros(numel), np.zeros(numel)
    for step in range(10):
        vector = gradient(step, comm.rank, numel)
        velocity = 0.5 * velocity + vector
        due += velocity
        set_gradients(model, vector)
        optimizer.step()
        applied += averaged(optimizer)
    due -= kept_vectors(optimizer)["accumulated"]
    total = sum(v.astype(np.float64) for v in everyone(comm, due.astype(np.float32)))
    np.testing.assert_allclose(applied * comm.size, total, atol=1e-2)
    theirs = everyone(comm, parameters(model))
    assert all(np.array_equal(theirs[0], other) for other in theirs)


def law_unbiased(comm: Communicator) -> None:
    """The mean of many exchanges of an unbiased rule is the mean gradient, within 5 sigma, at the density asked for."""
    rules: dict[Sparsifier, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
        ms.GSpar(density=0.3): lambda v: v**2 * (1 / ms.GSpar(density=0.3).probabilities(v.astype(np.float32)) - 1),
        ms.Uniform(density=0.3): lambda v: v**2 * (1 / 0.3 - 1),
        ms.QSGD(bits=3, bucket=None): lambda v: grid_variance(v, 3),
        ms.TernGrad(): lambda v: np.abs(v) * (np.abs(v).max() - np.abs(v)),
    }
    for rule, variance_of in rules.items():
        model = Net()
        optimizer = wrap(comm, model, rule, lr=0.0, layout=ms.Layout(dense_vectors=False))
        numel = optimizer.flat.buffer.numel()
        own = np.random.default_rng(comm.rank).standard_normal(numel).astype(np.float32)
        draws = 400
        total, count = np.zeros(numel), 0
        for _ in range(draws):
            set_gradients(model, own)
            optimizer.step()
            total += averaged(optimizer)
            assert optimizer.traffic is not None
            count += optimizer.traffic.count
        theirs = np.stack(everyone(comm, own)).astype(np.float64)
        mean = theirs.mean(axis=0)
        variance = np.sum([variance_of(v) for v in theirs], axis=0) / comm.size**2
        sigma = np.sqrt(variance / draws)
        assert (np.abs(total / draws - mean) < 5 * sigma + 1e-5).all(), rule
        if isinstance(rule, ms.GSpar | ms.Uniform):
            spread = np.sqrt(numel * 0.3 * draws)
            assert abs(count - 0.3 * numel * draws) < 5 * spread, rule


def grid_variance(vector: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Return the variance of each entry that is drawn onto the levels of one norm."""
    unit = np.linalg.norm(vector) / (2 ** (bits - 1) - 1)
    part = np.abs(vector) / unit % 1
    variance: NDArray[np.float64] = unit**2 * part * (1 - part)
    return variance


def law_resume(comm: Communicator) -> None:
    """2N steps equal N, a state saved and loaded elsewhere, and N more, bit for bit."""
    for rule, memory in (
        (ms.TopK(density=0.05), None),
        (ms.TopK(density=ms.Exponential(start=0.5, density=0.05, steps=6)), ms.MomentumCorrection()),
        (ms.GSpar(density=0.2), None),
        (ms.QSGD(bits=4, bucket=64), None),
        (TRACKED, None),
    ):
        model = Net()
        straight = wrap(comm, model, rule, memory=memory)
        train(comm, model, straight, 10)

        first = Net()
        before = wrap(comm, first, rule, memory=memory)
        train(comm, first, before, 5)
        second = Net(seed=99)
        after = wrap(comm, second, rule, memory=memory)
        second.load_state_dict(first.state_dict())
        after.load_state_dict(before.state_dict())
        train(comm, second, after, 5, start=5)
        np.testing.assert_array_equal(parameters(second), parameters(model))


def law_samples_weigh(comm: Communicator) -> None:
    """With sample counts the mean is over samples: it equals the gradient of all samples together."""
    counts = [3 * rank + 1 for rank in range(comm.size)]
    if comm.size > 1:
        counts[1] = 0
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(sum(counts), 11, generator=generator)
    start = sum(counts[: comm.rank])
    whole, model = Net(), Net()
    whole(inputs).square().mean().backward()
    optimizer = wrap(comm, model, ms.Dense())
    if counts[comm.rank]:
        model(inputs[start : start + counts[comm.rank]]).square().mean().backward()
    optimizer.synchronize(samples=counts[comm.rank])
    np.testing.assert_allclose(gradients(model), gradients(whole), rtol=2e-5, atol=1e-6)


def law_missing_gradients(comm: Communicator) -> None:
    """A parameter without a gradient on some ranks is averaged; one without on all ranks keeps None."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=1.0))
    optimizer.zero_grad()
    last = comm.size - 1
    if comm.rank == last:
        model.second.grad = torch.ones_like(model.second)
    optimizer.synchronize()
    assert model.first.grad is None
    assert model.bias.grad is None
    assert model.second.grad is not None
    assert torch.equal(model.second.grad, torch.full_like(model.second, 1 / comm.size))


def law_bad_gradient_stops_all(comm: Communicator) -> None:
    """NaN or infinity on one rank is an error on all of them that names the rank and the tensor; nothing changes."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        model = Net()
        optimizer = wrap(comm, model, ms.TopK(density=0.1))
        train(comm, model, optimizer, 3)
        before, residual = parameters(model), kept_vectors(optimizer)["residual"].copy()
        set_gradients(model, gradient(0, comm.rank, before.size))
        culprit = comm.size - 1
        if comm.rank == culprit:
            assert model.second.grad is not None
            model.second.grad[1, 2] = bad
        with pytest.raises(ms.NonFiniteError, match=f"after 3 steps.*rank {culprit} in second") as raised:
            optimizer.step()
        assert raised.value.on_all_ranks
        np.testing.assert_array_equal(parameters(model), before)
        np.testing.assert_array_equal(kept_vectors(optimizer)["residual"], residual)


def law_bad_gradient_skips_all(comm: Communicator) -> None:
    """With nonfinite="skip" all ranks skip the same step, count it, and keep parameters and residual as they are."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), nonfinite="skip")
    train(comm, model, optimizer, 2)
    before, residual = parameters(model), kept_vectors(optimizer)["residual"].copy()
    set_gradients(model, gradient(0, comm.rank, before.size))
    if comm.rank == 0:
        assert model.first.grad is not None
        model.first.grad[0, 0] = float("nan")
    optimizer.step()
    assert optimizer.skipped == 1
    np.testing.assert_array_equal(parameters(model), before)
    np.testing.assert_array_equal(kept_vectors(optimizer)["residual"], residual)
    train(comm, model, optimizer, 1)
    assert not np.array_equal(parameters(model), before)


def law_grad_scaler(comm: Communicator) -> None:
    """Under a GradScaler an overflow on one rank skips the step on all, and other steps equal unscaled ones."""
    model, plain = Net(), Net()
    optimizer, reference = wrap(comm, model, ms.TopK(density=0.2)), wrap(comm, plain, ms.TopK(density=0.2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for step in range(5):
        inputs = torch.randn(4, 11, generator=torch.Generator().manual_seed(10 * step + comm.rank))
        optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        if step == 2 and comm.rank == comm.size - 1:
            assert model.first.grad is not None
            model.first.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            reference.zero_grad()
            plain(inputs).square().mean().backward()
            reference.step()
        np.testing.assert_array_equal(parameters(model), parameters(plain))
    assert optimizer.skipped == 1


def law_different_models_are_refused(comm: Communicator) -> None:
    """Ranks with different models get one error on all of them that names the first difference."""
    if comm.size == 1:
        wrap(comm, Net(), ms.Dense())
        return
    model: nn.Module = Net()
    if comm.rank == comm.size - 1:
        model.second = nn.Parameter(torch.zeros(4, 7))
    with pytest.raises(ms.RankMismatchError, match=r"second: \(3, 7\).* on rank 0 but second: \(4, 7\)") as raised:
        wrap(comm, model, ms.Dense())
    assert raised.value.on_all_ranks
    with pytest.raises(ms.RankMismatchError, match="TopK"):
        wrap(comm, Net(), ms.TopK(density=0.1 if comm.rank else 0.2))


def law_ranks_out_of_step_are_refused(comm: Communicator) -> None:
    """A rank whose count of steps is not the others' is found before anything is sent."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=0.1))
    train(comm, model, optimizer, 1)
    if comm.size == 1:
        assert optimizer.exchange.step == 1
        return
    if comm.rank == comm.size - 1:
        optimizer.exchange.step += 1
    set_gradients(model, gradient(0, comm.rank, optimizer.flat.buffer.numel()))
    with pytest.raises(ms.RankMismatchError, match="different steps"):
        optimizer.step()


def law_uneven_messages(comm: Communicator) -> None:
    """Messages of any lengths arrive whole, empty ones and rounds of pieces included."""
    for limit in (2**31 - 1, 64, comm.size):
        piece = comm.duplicate()
        piece._call_limit = limit
        for lengths in ([0] * comm.size, [100 * rank for rank in range(comm.size)], [97] + [0] * (comm.size - 1)):
            payload = (np.arange(lengths[comm.rank]) + 31 * comm.rank).astype(np.uint8)
            received = piece.allgatherv(payload, np.array(lengths, np.int64))
            expected = [(np.arange(n) + 31 * rank).astype(np.uint8) for rank, n in enumerate(lengths)]
            np.testing.assert_array_equal(received, np.concatenate(expected))
    texts = comm.allgather_bytes(b"x" * comm.rank)
    assert texts == [b"x" * rank for rank in range(comm.size)]
    for root in range(comm.size):
        assert (
            comm.broadcast_bytes(f"from {comm.rank}".encode() if comm.rank == root else None, root)
            == f"from {root}".encode()
        )


def law_buffers_are_checked(comm: Communicator) -> None:
    """What does not fit is refused before MPI is called, so that nothing is overwritten."""
    counts = np.full(comm.size, 8, np.int64)
    good = np.zeros(8, np.uint8)
    for payload, numbers, out in (
        (np.zeros(7, np.uint8), counts, None),
        (np.zeros(2, np.float32), counts, None),
        (np.zeros((8, 2), np.uint8)[:, 0], counts, None),
        (good, counts.astype(np.int32), None),
        (good, np.full(comm.size, -8, np.int64), None),
        (good, np.full(comm.size + 1, 8, np.int64), None),
        (good, counts, np.zeros(8 * comm.size - 1, np.uint8)),
        (good, counts, np.zeros(8 * comm.size, np.int8)),
    ):
        for gather in (comm.allgatherv, comm.start_allgatherv):
            with pytest.raises(ms.CommError, match=f"rank {comm.rank}"):
                gather(payload, numbers, out)  # type: ignore[arg-type]
    with pytest.raises(ms.CommError):
        comm.alltoallv(np.zeros(3, np.uint8), np.zeros(comm.size, np.int64), np.zeros(comm.size, np.int64))


def law_options_that_differ_are_refused(comm: Communicator) -> None:
    """Learning rates or states that differ between ranks would part the replicas: found at wrapping and at any step."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=0.1))
    train(comm, model, optimizer, 1)
    if comm.size == 1:
        assert optimizer.exchange.step == 1
        return
    with pytest.raises(ms.RankMismatchError, match=r"group 0, lr=0\.1 on rank 0 but group 0, lr=0\.2 on rank 1"):
        wrap(comm, Net(), ms.Dense(), lr=0.1 * (comm.rank + 1))
    optimizer.param_groups[0]["lr"] = 0.5 + (comm.rank == comm.size - 1)
    with pytest.raises(ms.RankMismatchError, match=rf"lr=0\.5 on rank 0 but group 0, lr=1\.5 on rank {comm.size - 1}"):
        train(comm, model, optimizer, 1)
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if comm.rank == 0:
        plain.step()
    with pytest.raises(ms.RankMismatchError, match="the optimizers differ"):
        ms.DistributedOptimizer(plain, model, comm=comm)


def law_a_message_that_cannot_be_written_stops_all(comm: Communicator) -> None:
    """An error of one rank on its way to the exchange is raised by all, instead of leaving them waiting."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), wire=ms.Wire("float16"))
    set_gradients(model, gradient(0, comm.rank, optimizer.flat.buffer.numel()))
    culprit = comm.size - 1
    if comm.rank == culprit:
        assert model.first.grad is not None
        model.first.grad[0, 0] = 1e6
    named = f"rank {culprit} of {comm.size}: " if comm.size > 1 else ""
    with pytest.raises(ms.WireError, match=f"{named}value 1e.06 does not fit float16") as raised:
        optimizer.step()
    assert raised.value.on_all_ranks


def law_a_sum_that_overflows_stops_all(comm: Communicator) -> None:
    """Finite gradients whose sum is infinite are an error on all ranks; no parameter becomes infinite."""
    for rule in (ms.Dense(), ms.TopK(density=0.5)):
        model = Net()
        optimizer = wrap(comm, model, rule)
        before = parameters(model)
        set_gradients(model, np.full(before.size, 3e38, np.float32))
        if comm.size == 1:
            optimizer.synchronize()
            continue
        with pytest.raises(ms.NonFiniteError, match="overflows float32 in") as raised:
            optimizer.step()
        assert raised.value.on_all_ranks
        np.testing.assert_array_equal(parameters(model), before)


def law_a_state_of_another_rank_is_refused(comm: Communicator) -> None:
    """Residuals differ from rank to rank: rank 0's state is not everybody's."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=0.1))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    state["mpisparse"]["rank"] = (comm.rank + 1) % comm.size
    state["mpisparse"]["size"] = comm.size + (comm.size == 1)
    with pytest.raises(ms.CheckpointError, match="save and load on each"):
        optimizer.load_state_dict(state)


def law_stale_messages_are_refused(comm: Communicator) -> None:
    """A message of another step, bucket or rank in a slot is a WireError, never a wrong sum."""
    model = Net()
    optimizer = wrap(comm, model, ms.TopK(density=0.1))
    collective = optimizer.exchange.collective
    gather = collective.gather
    remembered: list[list[list[NDArray[np.uint8]]]] = []

    def stale(
        messages: list[NDArray[np.uint8]], failure: ms.MpiSparseError | None = None
    ) -> list[list[NDArray[np.uint8]]]:
        remembered.append([[m.copy() for m in bucket] for bucket in gather(messages)])
        return remembered[0]

    collective.gather = stale  # type: ignore[method-assign]
    train(comm, model, optimizer, 1)
    with pytest.raises(ms.WireError, match="step 0 came where step 1 was due"):
        train(comm, model, optimizer, 1)


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in sorted(globals().items()) if name.startswith("law_")
}
