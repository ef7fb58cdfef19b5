"""The laws of what the convex experiments add: SVRG, unsent penalties, the gauge, the re-sparsified average.

Run as those of tests/laws.py are.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

import mpisparse as ms
from mpisparse.comm import Communicator
from mpisparse.phases import Phases
from mpisparse.training.build import build_trainer
from mpisparse.training.config import SyntheticData
from mpisparse.training.configfile import parse_config
from mpisparse.training.data.synthetic import load
from mpisparse.training.evaluate import objective
from mpisparse.training.models import LogisticRegression
from mpisparse.training.optimum import find_optimum
from mpisparse.training.trainer import Trainer
from tests.laws import Net, averaged, everyone, parameters, set_gradients, wrap

#: 61 samples: ranks hold different numbers of them, and the last batch of an epoch is uneven.
SAMPLES, FEATURES = 61, 12
DATA = load(samples=SAMPLES, features=FEATURES, test_samples=5)
L2 = 0.1


def trainer_of(comm: Communicator, **changes: Any) -> Trainer:
    tree = {
        "name": "convex",
        "data": {"name": "synthetic", "samples": SAMPLES, "features": FEATURES},
        "model": {"name": "logistic", "l2": L2},
        "training": {"length": "1 epoch", "batch": 3},
        "optimizer": {"name": "SGD", "lr": 0.5},
        **changes,
    }
    config = parse_config(tree, "test")
    assert isinstance(config.data, SyntheticData)
    return build_trainer(config, DATA, comm, Phases())


def weight(trainer: Trainer) -> torch.Tensor:
    assert isinstance(trainer.model, LogisticRegression)
    return trainer.model.weight


def full_gradient(trainer: Trainer, at: torch.Tensor) -> torch.Tensor:
    """Return the gradient over all samples in float64, penalty included."""
    inputs, targets = DATA.train.batch(torch.arange(SAMPLES))
    signs = (2 * targets - 1).double()
    margins = signs * (inputs.double() @ at.double().view(-1))
    return -(inputs.double() * (signs * torch.sigmoid(-margins))[:, None]).mean(0) + L2 * at.double().view(-1)


def _svrg_steps_on_the_full_gradient_at_its_reference(comm: Communicator, form: str) -> None:
    trainer = trainer_of(comm, svrg={"form": form, "every": "5 steps"})
    for step in range(10):
        before = weight(trainer).detach().clone()
        trainer.step()
        stepped = (before - weight(trainer).detach()).view(-1).double() / 0.5
        expected = full_gradient(trainer, before)
        if step % 5 == 0:
            torch.testing.assert_close(stepped, expected, rtol=1e-4, atol=1e-6)
        else:
            assert not torch.allclose(stepped, expected, rtol=1e-4, atol=1e-6)


def law_svrg_whole_steps_on_the_full_gradient(comm: Communicator) -> None:
    """Right after a new reference every sample's correction makes up for it: no noise is left."""
    _svrg_steps_on_the_full_gradient_at_its_reference(comm, "whole")


def law_svrg_difference_steps_on_the_full_gradient(comm: Communicator) -> None:
    """The same where the full gradient is added after the exchange."""
    _svrg_steps_on_the_full_gradient_at_its_reference(comm, "difference")


def law_svrg_counts_its_full_gradient(comm: Communicator) -> None:
    """The step with a new reference moves a dense gradient more, and computes a gradient of every sample more."""
    trainer = trainer_of(comm, svrg={"every": "3 steps"}, sparsifier={"name": "gspar", "density": 0.3})
    records = [trainer.step() for _ in range(4)]
    for number, record in enumerate(records):
        refreshed = number % 3 == 0
        assert record.gradients == 2 * min(3 * comm.size, SAMPLES) + SAMPLES * refreshed
        assert record.traffic.coding == record.traffic.payload - ms.wire.HEADER_SIZE
        # A message of this vector is shorter than the vector; only the dense gradient makes it longer.
        assert (record.traffic.coding >= 4 * FEATURES) == refreshed
    extra = records[0].traffic.dense - records[1].traffic.dense
    assert extra == 2 * (comm.size - 1) * 4 * FEATURES // comm.size
    assert trainer.gradients_done == sum(record.gradients for record in records)


def law_svrg_converges_linearly_under_gspar(comm: Communicator) -> None:
    """Both forms come within 1e-6 of the optimum, replicas stay equal, and resume to the same bits."""
    for form in ("whole", "difference"):
        options = {
            "svrg": {"form": form, "every": "1 epoch"},
            "sparsifier": {"name": "gspar", "density": 0.3},
            "exchange": {"dense_vectors": False},
            "optimizer": {"name": "SGD", "lr": 0.3},
        }
        trainer = trainer_of(comm, **options)
        section = parse_config(
            {
                "name": "x",
                "data": {"name": "synthetic"},
                "model": {"name": "logistic", "l2": L2},
                "training": {"length": "1 epoch", "batch": 1},
            },
            "test",
        ).model
        least = find_optimum(section, DATA.train).objective  # type: ignore[arg-type]
        above = []
        for epoch in range(1, 61):
            for _ in range(trainer.sampler.steps_per_epoch):
                trainer.step()
            if epoch % 20 == 0:
                above.append(objective(comm, trainer.model, trainer.loss, DATA.train) - least)
        assert above[1] < max(above[0] / 5, 1e-12), above
        assert above[2] < 1e-5, above
        assert len({text.tobytes() for text in everyone(comm, parameters(trainer.model))}) == 1
        again = trainer_of(comm, **options)
        again.load_state(*deepcopy((trainer.replicated_state(), trainer.rank_state())))
        for _ in range(3):
            trainer.step()
            again.step()
        assert torch.equal(weight(trainer), weight(again))
        assert again.gradients_done == trainer.gradients_done


def law_an_unsent_penalty_is_applied_exactly(comm: Communicator) -> None:
    """Dense, it is the penalty that is sent, up to rounding; it costs no byte, and no rule touches it."""
    sent, local = (trainer_of(comm, model={"name": "logistic", "l2": L2, "penalty": how}) for how in ("sent", "local"))
    for _ in range(6):
        a, b = sent.step(), local.step()
        assert b.loss_sum == pytest.approx(a.loss_sum, rel=1e-5, abs=1e-7)
        assert b.traffic == a.traffic
    torch.testing.assert_close(weight(sent), weight(local), rtol=1e-5, atol=1e-6)
    quiet = trainer_of(
        comm,
        model={"name": "logistic", "l2": 1.0, "penalty": "local"},
        sparsifier={"name": "threshold", "threshold": 1e6},
    )
    with torch.no_grad():
        weight(quiet).fill_(2.0)
    quiet.step()
    assert bool((weight(quiet) == 1.0).all())  # 2 - 0.5 * 1.0 * 2: of the loss nothing reached the threshold


def law_the_gauge_measures_what_was_sent(comm: Communicator) -> None:
    """Uniform's squares grow by 1 / density; a rule that sends everything leaves them alone."""
    model = Net()
    optimizer = wrap(comm, model, ms.Uniform(density=0.25), lr=0.0, gauge=True, layout=ms.Layout(dense_vectors=False))
    before = after = 0.0
    vector = np.random.default_rng(comm.rank).standard_normal(parameters(model).size).astype(np.float32)
    for _ in range(300):
        set_gradients(model, vector)
        optimizer.step()
        squares = optimizer.traffic.squares
        assert squares is not None
        before, after = before + squares[0], after + squares[1]
    assert before / 300 == pytest.approx(float(np.square(vector, dtype=np.float64).sum()), rel=1e-6)
    assert after / before == pytest.approx(4.0, rel=0.1)
    dense = wrap(comm, model, ms.Dense(), gauge=True)
    set_gradients(model, vector)
    dense.step()
    assert dense.traffic.squares is not None
    assert dense.traffic.squares[0] == dense.traffic.squares[1] > 0
    assert wrap(comm, model, ms.Dense()).traffic.squares is None


def law_a_resparsified_average_is_the_same_on_all_ranks(comm: Communicator) -> None:
    """One random decision for all: sparser than the average, and equal bit for bit, at every step another."""
    model = Net()
    layout = ms.Layout(dense_vectors=False)
    twice = wrap(comm, model, ms.GSpar(density=0.5), resparsify=ms.GSpar(density=0.1), layout=layout)
    vector = np.random.default_rng(comm.rank).standard_normal(parameters(model).size).astype(np.float32)
    chosen = []
    for _ in range(4):
        set_gradients(model, vector)
        twice.step()
        assert len({text.tobytes() for text in everyone(comm, averaged(twice))}) == 1
        chosen.append(frozenset(np.flatnonzero(averaged(twice)).tolist()))
    assert len(set(chosen)) > 1
    assert max(len(places) for places in chosen) < 0.3 * vector.size
    assert len({text.tobytes() for text in everyone(comm, parameters(model))}) == 1


def law_a_resparsified_average_stays_unbiased(comm: Communicator) -> None:
    """The mean over many steps is the mean gradient, within what the variance of both draws allows."""
    model = Net()
    options: dict[str, Any] = {"resparsify": ms.GSpar(density=0.5), "layout": ms.Layout(dense_vectors=False)}
    optimizer = wrap(comm, model, ms.GSpar(density=0.5), lr=0.0, **options)
    vector = np.random.default_rng(comm.rank).standard_normal(parameters(model).size).astype(np.float32)
    steps = 400
    draws = np.empty((steps, vector.size))
    for step in range(steps):
        set_gradients(model, vector)
        optimizer.step()
        draws[step] = averaged(optimizer)
    mean = np.mean(everyone(comm, vector), axis=0)
    deviation = draws.std(axis=0, ddof=1) / np.sqrt(steps)
    assert (np.abs(draws.mean(axis=0) - mean) <= 5 * deviation + 1e-6).all()


def law_a_biased_rule_cannot_resparsify(comm: Communicator) -> None:
    """Nothing keeps what it would leave out of the average."""
    with pytest.raises(ms.ConfigError, match="resparsify TopK"):
        wrap(comm, Net(), ms.GSpar(density=0.5), resparsify=ms.TopK(density=0.1))


LAWS: dict[str, Callable[[Communicator], None]] = {
    name.removeprefix("law_"): law for name, law in sorted(globals().items()) if name.startswith("law_")
}
