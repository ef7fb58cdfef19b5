"""Faults asked for by the environment: read strictly, of this rank alone, and each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpisparse.errors import ConfigError
from mpisparse.faults import VARIABLE, Faults, faults_of


def faults(text: str, rank: int = 0) -> Faults:
    found = faults_of(rank, {VARIABLE: text})
    assert found is not None
    return found


def test_without_faults_of_this_rank_there_is_nothing_to_ask() -> None:
    assert faults_of(0, {}) is None
    assert faults_of(0, {VARIABLE: ""}) is None
    assert faults_of(0, {VARIABLE: "kill:rank=1,step=0;"}) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("explode:rank=0,step=1", "of no kind"),
        ("kill:rank=0", r"lacks \['step'\]"),
        ("kill:rank=0,step=1,seconds=2", r"\['seconds'\] too much"),
        ("late:rank=0,step=soon", "no number"),
        ("late:rank=0,step", "has no value"),
    ],
)
def test_what_cannot_be_read_is_refused_on_every_rank(text: str, said: str) -> None:
    for rank in (0, 1):
        with pytest.raises(ConfigError, match=said):
            faults_of(rank, {VARIABLE: text})


def test_a_message_is_changed_once_and_its_source_never() -> None:
    message = np.arange(64, dtype=np.uint8)
    made = faults("corrupt:rank=0,step=2,bucket=1; short:rank=0,step=3; long:rank=0,step=4; stale:rank=0,step=5")
    assert made.message(2, 0, message) is message
    changed = made.message(2, 1, message)
    assert np.flatnonzero(changed != message).size == 1
    assert made.message(2, 1, message) is message
    assert made.message(3, 0, message).tolist() == message[:-8].tolist()
    assert made.message(4, 0, message).tolist() == [*message.tolist(), *[0] * 8]
    assert made.message(5, 0, message + 1).tolist() == message.tolist()
    assert message.tolist() == list(range(64))


def test_one_bit_flips_where_it_was_asked_for() -> None:
    named = [("a", torch.zeros(4)), ("b", torch.zeros(2, 3))]
    made = faults("flip:rank=0,step=1,parameter=b,entry=4,bit=9")
    made.parameters(0, named)
    assert not any(tensor.any() for _, tensor in named)
    made.parameters(1, named)
    assert not named[0][1].any()
    assert named[1][1].view(torch.int32).flatten().tolist() == [0, 0, 0, 0, 1 << 9, 0]
    with pytest.raises(ConfigError, match="no parameter is called 'c'"):
        faults("flip:rank=0,step=1,parameter=c").parameters(1, named)


def test_gradients_and_the_way_to_the_exchange() -> None:
    gradient = torch.ones(3)
    made = faults("nan:rank=0,step=1;exception:rank=0,step=2;leave:rank=0,step=3;late:rank=0,step=4,seconds=0")
    made.gradient(0, gradient)
    assert gradient.isfinite().all()
    made.gradient(1, gradient)
    assert gradient.isnan().tolist() == [True, False, False]
    with pytest.raises(RuntimeError, match="asks of rank 0 after 2 steps"):
        made.before_exchange(2)
    with pytest.raises(SystemExit):
        made.before_exchange(3)
    for step in range(5):
        made.before_exchange(step)
