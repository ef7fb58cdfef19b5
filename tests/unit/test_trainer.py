"""Trainer: its steps, and what a resumed one takes from the configuration rather than from the state."""

from __future__ import annotations

from copy import deepcopy
from threading import Lock

import pytest
import torch

import mpisparse as ms
from mpisparse.comm import Communicator, run_ranks, solo
from mpisparse.phases import Phases
from mpisparse.sampler import Sampler
from mpisparse.training import config as schema
from mpisparse.training.build import (
    build_data,
    build_model,
    build_optimizer,
    build_schedule,
    build_trainer,
    learning_rate_factor,
)
from mpisparse.training.configfile import parse_config
from mpisparse.training.evaluate import CutShortError, evaluate
from mpisparse.training.trainer import Trainer

_SEEDED = Lock()

#: Read once, before there are threads: numpy parses a file's header, and Python 3.11's parser fails in several at once.
DIGITS = build_data(schema.DigitsData(name="digits"))


def make(comm: Communicator, **changes: object) -> Trainer:
    tree = {
        "name": "try",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"length": "2 epochs", "batch": 50},
        "optimizer": {"name": "SGD", "lr": 0.1, "momentum": 0.5},
        "schedule": {"name": "cosine"},
        "sparsifier": {"name": "topk", "density": 0.1},
        **changes,
    }
    config = parse_config(tree, "test")
    phases = Phases()
    data = DIGITS
    with _SEEDED:  # the generator is the process's, and ranks here are threads
        torch.manual_seed(0)
        model, loss = build_model(config.model, data, config.training.smoothing)
    sampler = Sampler(len(data.train), config.training.batch or 1, 0, comm.rank, comm.size)
    optimizer = build_optimizer(config, model, comm, phases)
    per_epoch = sampler.steps_per_epoch
    schedule = build_schedule(config.schedule, optimizer, config.training.length.steps(per_epoch), per_epoch)
    return Trainer(
        model=model,
        loss=loss,
        data=data.train,
        sampler=sampler,
        optimizer=optimizer,
        schedule=schedule,
        options=config.training,
        phases=phases,
    )


def test_microbatches_make_the_same_step() -> None:
    whole = make(solo())
    parts = make(solo(), training={"length": "2 epochs", "batch": 50, "microbatch": 7})
    for _ in range(3):
        a, b = whole.step(), parts.step()
        assert b.loss_sum == pytest.approx(a.loss_sum, rel=1e-5)
        assert b.samples == a.samples == 50
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_takes_its_options_from_the_configuration() -> None:
    """Length, learning rate and momentum that changed count from the next step on; the momentum buffers stay."""
    first = make(solo())
    for _ in range(10):
        first.step()
    state = first.replicated_state(), first.rank_state()
    optimizer = {"name": "SGD", "lr": 0.2, "momentum": 0.7}
    second = make(solo(), training={"length": "4 epochs", "batch": 50}, optimizer=optimizer)
    second.load_state(*state)
    steps = 4 * second.sampler.steps_per_epoch
    expected = 0.2 * learning_rate_factor(schema.Schedule(name="cosine"), steps, 1)(10)
    assert second.step().learning_rate == expected
    assert second.optimizer.param_groups[0]["momentum"] == 0.7
    assert second.steps_done == 11
    buffers = [s["momentum_buffer"] for s in second.optimizer.state.values()]
    assert buffers
    assert all(bool(buffer.any()) for buffer in buffers)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_overlap_trains_to_the_same_bits_and_resumes(size: int) -> None:
    """Microbatches, uneven last batches and a state taken over in the middle of an epoch included."""

    def one(comm: Communicator) -> None:
        training = {"length": "2 epochs", "batch": 190, "microbatch": 100}
        tensors = {"granularity": "tensor", "bucket_mib": 0.001}
        plain, early, resumed = (
            make(comm, training=training, exchange={**tensors, "overlap": mode}) for mode in ("off", "on", "on")
        )
        hidden = 0.0
        for step in range(10):
            if step == 5:
                resumed.load_state(*deepcopy((early.replicated_state(), early.rank_state())))
            records = [trainer.step() for trainer in ((plain, early, resumed) if step >= 5 else (plain, early))]
            assert len({(record.samples, record.loss_sum) for record in records}) == 1
            hidden += records[1].hidden
        assert hidden > 0
        for p, q, r in zip(*(trainer.model.parameters() for trainer in (plain, early, resumed)), strict=True):
            assert torch.equal(p, q)
            assert torch.equal(p, r)

    run_ranks(size, one)


def test_a_skipped_step_is_recorded_as_one_that_moved_nothing() -> None:
    def one(comm: Communicator) -> None:
        trainer = make(comm, exchange={"nonfinite": "skip"})
        if comm.rank == 1:
            with torch.no_grad():
                trainer.model.get_parameter("layers.1.weight")[0, 0] = float("nan")
        record = trainer.step()
        assert (record.traffic.payload, record.traffic.received, record.traffic.count) == (0, 0, 0)
        assert trainer.optimizer.skipped == 1
        assert trainer.steps_done == 1

    run_ranks(2, one)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_evaluation_counts_every_sample_once(size: int) -> None:
    def one(comm: Communicator) -> dict[str, float]:
        trainer = make(comm)
        return evaluate(comm, trainer.model, trainer.loss, DIGITS.test)

    alone = run_ranks(1, one)[0]
    for metrics in run_ranks(size, one):
        assert metrics["accuracy"] == alone["accuracy"]
        assert metrics["loss"] == pytest.approx(alone["loss"], rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_evaluation_is_cut_short_on_all_ranks(size: int) -> None:
    """One rank is to stop; nothing of the sums is returned anywhere."""

    def law(comm: Communicator) -> None:
        trainer = make(comm)
        model, loss, data = trainer.model, trainer.loss, DIGITS.test
        whole = evaluate(comm, model, loss, data)
        with pytest.raises(CutShortError):
            evaluate(comm, model, loss, data, lambda: comm.rank == size - 1)
        assert evaluate(comm, model, loss, data) == whole
        assert model.training

    run_ranks(size, law)


def test_normalisation_is_evaluated_with_mean_statistics_and_left_alone() -> None:
    def one(comm: Communicator) -> tuple[float, torch.Tensor]:
        trainer = make(comm, model={"name": "cnn", "channels": 4, "hidden": 8})
        trainer.step()
        before = [buffer.clone() for buffer in trainer.model.buffers()]
        test = DIGITS.test
        loss = evaluate(comm, trainer.model, trainer.loss, test)["loss"]
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.buffers(), strict=True))
        return loss, before[0]

    (loss, mean), (other_loss, other_mean) = run_ranks(2, one)
    assert loss == other_loss
    assert not torch.equal(mean, other_mean)


def test_smoothing_where_it_does_nothing_is_refused() -> None:
    data = build_data(schema.SyntheticData(name="synthetic", samples=10, features=4, test_samples=4))
    with pytest.raises(ms.ConfigError, match="smoothing"):
        build_model(schema.LogisticModel(name="logistic"), data, smoothing=0.1)


def test_schedules_have_their_shapes() -> None:
    cosine = learning_rate_factor(schema.Schedule(name="cosine", warmup=4, final=0.1), 104, 10)
    assert [cosine(step) for step in range(4)] == [0.2, 0.4, 0.6, 0.8]
    assert cosine(4) == 1.0
    assert cosine(54) == pytest.approx(0.55)
    assert cosine(104) == pytest.approx(0.1)
    steps = learning_rate_factor(schema.Schedule(name="step"), 100, 10)
    assert [steps(step) for step in (0, 49, 50, 75)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert learning_rate_factor(schema.Schedule(), 10, 10)(9) == 1.0
    inverse = learning_rate_factor(schema.Schedule(name="inverse", period="2 epochs"), 100, 10)  # type: ignore[arg-type]
    assert [inverse(step) for step in (0, 20, 60)] == [1.0, 0.5, 0.25]


def test_svrg_refuses_models_whose_gradient_differs_between_calls() -> None:
    with pytest.raises(ms.ConfigError, match="running statistics"):
        make_whole({"name": "cnn", "channels": 4, "hidden": 8})
    with pytest.raises(ms.ConfigError, match=r"svrg\.every is 0"):
        make_whole({"name": "mlp", "hidden": [8]}, every="0 steps")


def make_whole(model: dict[str, object], every: str = "1 epoch") -> Trainer:
    """Return a trainer with SVRG, as a run builds it."""
    tree = {
        "name": "try",
        "data": {"name": "digits"},
        "model": model,
        "training": {"length": "2 epochs", "batch": 50},
        "svrg": {"every": every},
    }
    return build_trainer(parse_config(tree, "test"), DIGITS, solo(), Phases())


def test_svrg_trains_any_smooth_model_without_noise() -> None:
    """A multilayer perceptron: the first step of a reference is that of the whole set, whatever the batch."""
    trainer = make_whole({"name": "mlp", "hidden": [8]})
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    inputs, targets = DIGITS.train.batch(torch.arange(len(DIGITS.train)))
    trainer.loss(trainer.model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    expected = [parameter.grad.clone() for parameter in trainer.model.parameters() if parameter.grad is not None]
    trainer.step()
    for old, new, gradient in zip(before, trainer.model.parameters(), expected, strict=True):
        torch.testing.assert_close(old - new.detach(), 0.1 * gradient, rtol=1e-3, atol=1e-6)
