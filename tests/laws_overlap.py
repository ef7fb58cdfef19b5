"""The laws of overlap: messages that leave during backward change nothing but the time, and never leave a rank waiting.

Run as those of tests/laws.py are.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import mpisparse as ms
from mpisparse.collectives import Flight
from mpisparse.comm import Communicator
from tests.laws import RULES, Net, everyone, kept_vectors, parameters, set_gradients, train, wrap

LAYOUTS = (
    ms.Layout(granularity="tensor", bucket_mib=1e-6),  # a tensor a group
    ms.Layout(granularity="tensor", dense_vectors=False, bucket_mib=0.00012),
    ms.Layout(granularity="bucket", bucket_mib=0.0002, dense_below=10),
    ms.Layout(),
)
FINE = LAYOUTS[0]


class Deep(nn.Module):
    """Several layers, one of them tied and one that only some ranks use."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ParameterList(torch.randn(8, 8, generator=generator) / 3 for _ in range(4))
        self.bias = nn.Parameter(torch.zeros(8))
        self.sometimes = nn.Parameter(torch.randn(8, 8, generator=generator) / 3)

    def forward(self, inputs: Tensor, use: bool = True) -> Tensor:
        hidden = inputs
        for layer in [*self.layers, self.layers[1]]:
            hidden = torch.tanh(hidden @ layer + self.bias)
        return hidden @ self.sometimes if use else hidden


def samples_of(comm: Communicator, step: int) -> int:
    """Return how many samples a rank has: uneven, and none on rank 1 now and then."""
    return 0 if comm.size > 1 and comm.rank == 1 and step % 3 == 2 else 3 + comm.rank


def train_deep(
    comm: Communicator,
    model: nn.Module,
    optimizer: ms.DistributedOptimizer,
    steps: range,
    *,
    announce: bool = True,
    set_to_none: bool = True,
) -> None:
    """Take steps of two backward passes on uneven samples, with tensors that some ranks do not use."""
    for step in steps:
        count = samples_of(comm, step)
        generator = torch.Generator().manual_seed(100 * step + comm.rank)
        optimizer.zero_grad(set_to_none)
        if announce:
            optimizer.expect(samples=count)
        if count:
            with optimizer.no_sync():
                model(torch.randn(2, 8, generator=generator)).square().mean().backward()
            use = (step + comm.rank) % 2 == 0
            model(torch.randn(count, 8, generator=generator), use).square().mean().backward()
        optimizer.step(samples=count)


def begun(optimizer: ms.DistributedOptimizer) -> bool:
    return optimizer._early.sender.has_begun


def law_overlap_changes_no_bit(comm: Communicator) -> None:
    """With every rule, memory and layout, parameters and memories are those without overlap, bit for bit."""
    rules = [(rule, None) for rule in RULES]
    correction = ms.MomentumCorrection(momentum=0.5)
    schedule = ms.Exponential(start=0.5, density=0.05, steps=3)
    warm_up = ms.DenseWarmup(density=0.1, steps=2)
    for rule, memory in [*rules, (ms.TopK(schedule), correction), (ms.TopK(warm_up), None)]:
        for layout in LAYOUTS:
            found = []
            for overlap in ("off", "on"):
                model = Deep()
                optimizer = wrap(comm, model, rule, memory=memory, layout=layout, overlap=overlap)
                train_deep(comm, model, optimizer, range(3))
                kept = kept_vectors(optimizer)
                found.append((parameters(model), {name: vector.copy() for name, vector in kept.items()}))
            (plain, memories), (overlapped, others) = found
            np.testing.assert_array_equal(overlapped, plain, err_msg=f"{rule} {layout}")
            for name, vector in memories.items():
                np.testing.assert_array_equal(others[name], vector, err_msg=f"{rule} {layout} {name}")


def law_overlap_keeps_replicas_equal(comm: Communicator) -> None:
    """All ranks hold the same parameters after every step, rounding values and reused gradients included."""
    for set_to_none in (True, False):
        model = Deep(seed=comm.rank)
        optimizer = wrap(comm, model, ms.TopK(density=0.1), wire=ms.Wire("bfloat16"), layout=FINE, overlap="on")
        for step in range(4):
            train_deep(comm, model, optimizer, range(step, step + 1), set_to_none=set_to_none)
            theirs = everyone(comm, parameters(model))
            assert all(np.array_equal(theirs[0], other) for other in theirs)


def law_overlap_sends_before_backward_ends(comm: Communicator) -> None:
    """The last layer's messages are on their way before the first layer has a gradient."""
    model = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(4)])
    optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
    seen: list[int] = []
    first = next(iter(model.parameters()))
    first.register_hook(lambda gradient: seen.append(optimizer._early.sender._sent))  # type: ignore[no-untyped-call]
    model(torch.ones(2, 6)).square().sum().backward()
    assert seen == [3]
    assert begun(optimizer)
    optimizer.step()
    assert not begun(optimizer)


def law_overlap_outlasts_slow_ranks(comm: Communicator) -> None:
    """Ranks that are late at any layer, in any order, change no bit."""
    found = []
    for overlap in ("off", "on"):
        model = Deep()
        optimizer = wrap(comm, model, ms.TopK(density=0.2), layout=FINE, overlap=overlap)
        naps = np.random.default_rng(comm.rank)
        for layer in model.layers:
            layer.register_hook(lambda gradient, naps=naps: time.sleep(float(naps.uniform(0, 0.004))))
        train_deep(comm, model, optimizer, range(4))
        found.append(parameters(model))
    np.testing.assert_array_equal(found[0], found[1])


def law_overlap_resumes(comm: Communicator) -> None:
    """2N steps equal N, a state saved and loaded elsewhere, and N more; and the mode may change in between."""
    for before, after in (("on", "on"), ("on", "off"), ("off", "on")):
        straight, first, second = Deep(), Deep(), Deep(seed=9)
        rule = ms.GSpar(density=0.3) if before == after else ms.TopK(density=0.1)
        train_deep(comm, straight, wrap(comm, straight, rule, layout=FINE, overlap="on"), range(6))
        saved = wrap(comm, first, rule, layout=FINE, overlap=before)
        train_deep(comm, first, saved, range(3))
        loaded = wrap(comm, second, rule, layout=FINE, overlap=after)
        second.load_state_dict(first.state_dict())
        loaded.load_state_dict(saved.state_dict())
        train_deep(comm, second, loaded, range(3, 6))
        np.testing.assert_array_equal(parameters(second), parameters(straight))


def law_overlap_takes_other_types(comm: Communicator) -> None:
    """Parameters that are not float32 keep gradients of their own, and are sent early all the same."""
    found = []
    for overlap in ("off", "on"):
        model = Deep().to(torch.bfloat16)
        optimizer = wrap(comm, model, ms.TopK(density=0.2), layout=FINE, overlap=overlap)
        for step in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(3, 8, generator=torch.Generator().manual_seed(10 * step + comm.rank))
            model(inputs.to(torch.bfloat16)).square().mean().backward()
            assert begun(optimizer) == (overlap == "on")
            optimizer.step()
        found.append(torch.cat([p.detach().float().reshape(-1) for p in model.parameters()]))
    assert torch.equal(*found)


def law_overlap_without_backward(comm: Communicator) -> None:
    """Gradients that come without backward, or on some ranks alone, are exchanged at step()."""
    found = []
    for overlap in ("off", "on"):
        model = Net()
        optimizer = wrap(comm, model, ms.TopK(density=1.0 - 1e-9), layout=FINE, overlap=overlap)
        optimizer.zero_grad()
        if comm.rank == comm.size - 1:
            model.second.grad = torch.ones_like(model.second)
        optimizer.synchronize()
        assert model.bias.grad is None
        assert model.second.grad is not None
        assert torch.equal(model.second.grad, torch.full_like(model.second, 1 / comm.size))
        optimizer.step()
        numel = optimizer.flat.buffer.numel()
        set_gradients(model, np.random.default_rng(comm.rank).integers(-4, 5, numel).astype(np.float32))
        optimizer.step()
        found.append(parameters(model))
    np.testing.assert_array_equal(found[0], found[1])


def law_overlap_bad_gradient_stops_all(comm: Communicator) -> None:
    """NaN in a bucket of one rank is an error on all that names rank and tensor; no memory of it, no step."""
    model = Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="on")
    train_deep(comm, model, optimizer, range(2))
    before = parameters(model)
    optimizer.zero_grad()
    culprit = comm.size - 1
    if comm.rank == culprit:
        model.layers[2].register_hook(lambda gradient: gradient * float("nan"))
    place = next(slot for slot in optimizer.flat.slots if slot.name == "layers.2")
    residual = kept_vectors(optimizer)["residual"][place.start : place.stop].copy()
    model(torch.ones(2, 8)).square().mean().backward()
    with pytest.raises(ms.NonFiniteError, match=f"after 2 steps.*rank {culprit} in layers.2") as raised:
        optimizer.step()
    assert raised.value.on_all_ranks
    np.testing.assert_array_equal(parameters(model), before)
    if comm.rank == culprit:
        np.testing.assert_array_equal(kept_vectors(optimizer)["residual"][place.start : place.stop], residual)
    with pytest.raises(ms.MpiSparseError, match="broke off"):
        optimizer.zero_grad()
    with pytest.raises(ms.MpiSparseError, match="broke off"):
        optimizer.step()


def law_overlap_bad_dense_gradient_stops_all(comm: Communicator) -> None:
    """NaN in a tensor that is sent whole is found before anything is averaged."""
    model = Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="on")
    if comm.rank == 0:
        model.bias.register_hook(lambda gradient: gradient / 0.0)  # type: ignore[no-untyped-call]
    model(torch.ones(2, 8)).square().mean().backward()
    with pytest.raises(ms.NonFiniteError, match="rank 0 in bias"):
        optimizer.step()


def law_overlap_unwritable_message_stops_all(comm: Communicator) -> None:
    """A message that one rank cannot write ends the step on all ranks, with that rank's words."""
    model = Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.5), wire=ms.Wire("float16"), layout=FINE, overlap="on")
    culprit = comm.size - 1
    if comm.rank == culprit:
        model.layers[2].register_hook(lambda gradient: torch.full_like(gradient, 1e6))
    model(torch.ones(2, 8)).square().mean().backward()
    named = f"rank {culprit} of {comm.size}: " if comm.size > 1 else ""
    with pytest.raises(ms.WireError, match=f"{named}value 1.* does not fit float16") as raised:
        optimizer.step()
    assert raised.value.on_all_ranks


def law_overlap_second_backward_is_refused(comm: Communicator) -> None:
    """A backward pass that adds to what was sent is an error in that pass; a step after it is still whole."""
    model = Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
    model(torch.ones(2, 8)).square().mean().backward()
    before = kept_vectors(optimizer)["residual"].copy()
    with pytest.raises(ms.MpiSparseError, match=r"adds to the gradient of .*, which is on its way"):
        model(torch.ones(2, 8)).square().mean().backward()
    with optimizer.no_sync(), pytest.raises(ms.MpiSparseError, match="is on its way"):
        model(torch.ones(2, 8)).square().mean().backward()
    np.testing.assert_array_equal(kept_vectors(optimizer)["residual"], before)
    with pytest.raises(ms.MpiSparseError, match="gradients were changed between backward"):
        optimizer.step()


def law_overlap_backward_cannot_be_thrown_away(comm: Communicator) -> None:
    """zero_grad() after messages left is refused and changes nothing: step() goes on as if it had not been called."""
    found = []
    for throw_away in (False, True):
        model = Deep()
        optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
        model(torch.ones(2, 8) + comm.rank).square().mean().backward()
        if throw_away:
            for call in (optimizer.zero_grad, optimizer.state_dict, optimizer.expect):
                with pytest.raises(ms.MpiSparseError, match=r"on their way|were sent"):
                    call()
        optimizer.step()
        optimizer.zero_grad()
        found.append(parameters(model))
    np.testing.assert_array_equal(found[0], found[1])


def law_overlap_changed_gradients_are_refused(comm: Communicator) -> None:
    """Clipping before the exchange would be lost, so it is an error on all ranks; after it, it counts."""

    def replace_gradient(model: Deep) -> None:
        model.layers[3].grad = torch.zeros_like(model.layers[3])

    changes: tuple[Callable[[Deep], object], ...] = (
        lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
        replace_gradient,
    )
    for change, dtype in itertools.product(changes, (torch.float32, torch.bfloat16)):
        model = Deep().to(dtype)
        optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
        model(torch.ones(2, 8, dtype=dtype)).square().mean().backward()
        if comm.rank == comm.size - 1:
            change(model)
        with pytest.raises(ms.MpiSparseError, match="gradients were changed between backward") as raised:
            optimizer.step()
        assert raised.value.on_all_ranks


def law_overlap_samples_are_announced(comm: Communicator) -> None:
    """Uneven counts after backward are refused; equal ones are taken; announced ones need not be said again."""
    model, plain = Deep(), Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
    reference = wrap(comm, plain, ms.TopK(density=0.5), layout=FINE, overlap="off")
    inputs = torch.ones(2, 8) + comm.rank
    for step, (announced, given) in enumerate(((None, 4), (comm.rank + 1, None), (comm.rank + 2, comm.rank + 2))):
        for net, held in ((model, optimizer), (plain, reference)):
            held.zero_grad()
            if announced is not None:
                held.expect(samples=announced)
            net(inputs).square().mean().backward()
            held.step(samples=given)
        np.testing.assert_array_equal(parameters(model), parameters(plain), err_msg=str(step))
    optimizer.zero_grad()
    optimizer.expect(samples=3)
    model(inputs).square().mean().backward()
    with pytest.raises(ms.ConfigError, match="differ on some rank"):
        optimizer.step(samples=3 + (comm.rank == 0))
    if comm.size > 1:
        model = Deep()
        optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
        model(inputs).square().mean().backward()
        with pytest.raises(ms.ConfigError, match=r"samples are \[1, 2.*call expect\(samples=\)"):
            optimizer.step(samples=comm.rank + 1)


def law_overlap_refuses_stale_messages(comm: Communicator) -> None:
    """A message of another step in a slot is a WireError, never a wrong sum."""
    model = Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="on")
    flights = optimizer._early.sender.flights
    assert flights is not None
    begin = flights.begin
    remembered: list[list[NDArray[np.uint8]]] = []

    def stale(groups: int) -> Flight:
        flight = begin(groups)
        wait = flight.wait

        def old(group: int) -> list[list[NDArray[np.uint8]]]:
            received = wait(group)
            assert received is not None
            remembered.append([message.copy() for bucket in received for message in bucket])
            return [remembered[group]]

        flight.wait = old  # type: ignore[method-assign]
        return flight

    flights.begin = stale  # type: ignore[method-assign]
    model(torch.ones(2, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    model(torch.ones(2, 8)).square().mean().backward()
    with pytest.raises(ms.WireError, match="step 0 came where step 1 was due"):
        optimizer.step()


def law_overlap_finds_ranks_out_of_step(comm: Communicator) -> None:
    """A rank at another step, or one that does not send early, is named before anybody waits for messages."""
    if comm.size == 1:
        return
    for mismatch in ("step", "mode"):
        model = Deep()
        optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="on")
        if comm.rank == comm.size - 1:
            optimizer.exchange.step += mismatch == "step"
            optimizer._early.sender.wanted = mismatch != "mode"
        model(torch.ones(2, 8)).square().mean().backward()
        with pytest.raises(ms.RankMismatchError, match=r"at different steps|during backward and others did not"):
            optimizer.step()


def law_overlap_moves_what_one_call_cannot(comm: Communicator) -> None:
    """Messages beyond the limit of one call come in several, in the flight's thread."""
    found = []
    for limit in (2**31 - 1, 100):
        model = Deep()
        optimizer = wrap(comm, model, ms.TopK(density=0.5), layout=FINE, overlap="on")
        assert optimizer._early.sender.flights is not None
        optimizer._early.sender.flights.payloads._call_limit = limit
        train_deep(comm, model, optimizer, range(3))
        found.append(parameters(model))
    np.testing.assert_array_equal(found[0], found[1])


def law_overlap_trial_settles_alike(comm: Communicator) -> None:
    """ "auto" tries both ways with the same bits, then stays with one, the same on all ranks, and says so once."""
    said: list[str] = []
    model, plain = Deep(), Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="auto", say=said.append)
    assert [line for line in said if not line.startswith("kernels ")] == []
    said.clear()
    reference = wrap(comm, plain, ms.TopK(density=0.1), layout=FINE, overlap="off")
    modes = []
    for step in range(30):
        for net, held in ((model, optimizer), (plain, reference)):
            held.zero_grad()
            net(torch.ones(2, 8) * step + comm.rank).square().mean().backward()
            if held is optimizer:
                modes.append(begun(held))
            held.step()
        np.testing.assert_array_equal(parameters(model), parameters(plain))
    theirs = comm.allgather(modes)
    assert (theirs == theirs[0]).all()
    if comm.size == 1:
        assert not any(modes)
        assert not said
        return
    assert len(set(modes[3:10])) == 2
    assert len(set(modes[-8:])) == 1
    assert len(said) == (comm.rank == 0)
    assert all("ms a step against" in line for line in said)


def law_overlap_trial_gives_up_on_programs_that_would_fail(comm: Communicator) -> None:
    """ "auto" never breaks a program that runs without overlap: it looks first, and says why it stays off."""
    if comm.size == 1:
        return

    def clip(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        model(torch.ones(2, 8)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    def repeat(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        for _ in range(2):
            model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()

    def count_late(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step(samples=1 + comm.rank)

    def scale(model: nn.Module, optimizer: ms.DistributedOptimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale(model(torch.ones(2, 8)).square().mean()).backward()
        scaler.step(optimizer)

    programs = {"changed": clip, "add up": repeat, "come after": count_late, "GradScaler": scale}
    for words, program in programs.items():
        said: list[str] = []
        model = Deep()
        optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="auto", say=said.append)
        said.clear()
        for _ in range(9):
            optimizer.zero_grad()
            program(model, optimizer)
            assert not optimizer._early.choice.overlaps
        said = [line for line in said if line.startswith("overlap")]
        assert len(said) == (comm.rank == 0)
        assert all(line.startswith("overlap: off, ") and words in line for line in said)


def law_overlap_refuses_what_it_cannot_take_back(comm: Communicator) -> None:
    """Skipping steps does not go with messages that left."""
    with pytest.raises(ms.ConfigError, match="cannot be skipped once"):
        wrap(comm, Deep(), ms.TopK(density=0.1), layout=FINE, overlap="on", nonfinite="skip")
    model = Deep()
    optimizer = wrap(comm, model, ms.TopK(density=0.1), layout=FINE, overlap="on")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.ones(2, 8)).square().mean()).backward()
    with pytest.raises(ms.ConfigError, match="GradScaler"):
        scaler.step(optimizer)
    with pytest.raises(ms.ConfigError, match="use auto, on or off"):
        wrap(comm, Deep(), ms.TopK(density=0.1), overlap="never")


def law_started_calls_bring_what_calls_bring(comm: Communicator) -> None:
    """start_allgather and start_allgatherv check and bring what the calls that wait do; the buffers may be dropped."""
    ours = comm.duplicate()
    rows = ours.start_allgather([comm.rank, 7])
    lengths = [5 * rank for rank in range(comm.size)]
    payload = np.full(lengths[comm.rank], comm.rank, np.uint8)
    packed = ours.start_allgatherv(payload, np.array(lengths, np.int64))
    del payload
    for pending in (rows, packed):
        finish(pending.test)
        assert pending.test()
    assert rows.result.tolist() == [[rank, 7] for rank in range(comm.size)]
    np.testing.assert_array_equal(packed.result, np.repeat(np.arange(comm.size), lengths).astype(np.uint8))
    out = np.full(comm.size + 3, 9, np.uint8)
    into = ours.start_allgatherv(np.ones(1, np.uint8), np.ones(comm.size, np.int64), out)
    finish(into.test)
    assert out.tolist() == [1] * comm.size + [9] * 3
    ours._call_limit = comm.size - 1
    with pytest.raises(ms.CommError, match="more than one started Allgatherv may move"):
        ours.start_allgatherv(np.ones(1, np.uint8), np.ones(comm.size, np.int64))


def finish(test: Callable[[], bool]) -> None:
    for _ in attempts():
        if test():
            return


def attempts(limit: float = 20.0) -> Iterator[None]:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        yield
        time.sleep(0.0002)
    raise AssertionError("a started call did not end")


def law_plain_training_overlaps(comm: Communicator) -> None:
    """The steps of the other laws, with overlap on where samples are as many on every rank."""
    found = []
    for overlap in ("off", "on"):
        model = Net()
        optimizer = wrap(comm, model, ms.TopK(density=0.2), layout=FINE, overlap=overlap)
        train(comm, model, optimizer, 6)
        found.append(parameters(model))
    np.testing.assert_array_equal(found[0], found[1])


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in sorted(globals().items()) if name.startswith("law_")
}
