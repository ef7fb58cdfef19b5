"""MomentumCorrection: momentum before the selection, on each rank, as deep gradient compression does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpisparse.arguments import is_number, require_flag, short
from mpisparse.errors import ConfigError
from mpisparse.kernels.anywhere import Anywhere, advanced, zeros
from mpisparse.kernels.source import Source
from mpisparse.memory.base import Kept, Memory, refuse_amplifying
from mpisparse.sparsifiers.base import Sparsifier

#: Options by which optimizers take a momentum of their own.
_MOMENTA = ("momentum", "betas", "beta1")


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentumCorrection(Memory):
    """Keeps a velocity u = m u + g and its sum v += u; v is selected from, and what was sent is cleared in it.

    The optimizer must have no momentum of its own, nor get one from a scheduler: give OneCycleLR and CyclicLR
    cycle_momentum=False. Tensors that are always dense get ordinary momentum. On steps that send everything (a dense
    warm-up) nothing is late, so nothing is masked and the momentum is the ordinary one.

    momentum: the discount m, above 0 and below 1.
    masking: clear u, too, where an entry was sent, so that stale momentum does not push it on.
    nesterov: look ahead: u = m (u + g), v += u + g.

    Source: Lin, Han, Mao, Wang, Dally, ICLR 2018, sections 3.1 and 3.2.
    """

    momentum: float = 0.9
    masking: bool = True
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.momentum) or not 0.0 < self.momentum < 1.0:
            raise ConfigError(
                f"momentum {short(self.momentum)} is outside (0, 1): use a value such as 0.9, or ErrorFeedback()"
            )
        require_flag("masking", self.masking)
        require_flag("nesterov", self.nesterov)

    def start(self, numel: int, sparse_numel: int, like: Anywhere = None) -> Kept:
        """Return zero velocities of `numel` entries, and zero sums of `sparse_numel`."""
        return _Velocity(self, zeros(numel, like), zeros(sparse_numel, like))

    def check(self, sparsifier: Sparsifier, param_groups: list[dict[str, Any]]) -> None:
        """Refuse amplifying rules, and optimizers that bring momentum of their own."""
        refuse_amplifying(sparsifier, "momentum correction")
        for number, group in enumerate(param_groups):
            name = next((name for name in _MOMENTA if group.get(name)), None)
            if name is not None:
                raise ConfigError(
                    f"momentum would count twice: MomentumCorrection(momentum={self.momentum}) and the optimizer's "
                    f"{name}={group[name]} in parameter group {number}. Use plain SGD (momentum=0), with "
                    "cycle_momentum=False where OneCycleLR or CyclicLR schedules it, or ErrorFeedback()"
                )


class _Velocity(Kept):
    def __init__(self, options: MomentumCorrection, velocity: Anywhere, accumulated: Anywhere) -> None:
        self.options = options
        self.velocity = velocity
        self.accumulated = accumulated

    def source(self, gradient: Anywhere, place: slice) -> Source:
        options = self.options
        return advanced(
            self.velocity[place],
            self.accumulated[place],
            gradient,
            momentum=options.momentum,
            nesterov=options.nesterov,
            masking=options.masking,
        )

    def whole(self, gradient: Anywhere, place: slice) -> None:
        accumulated = self.accumulated[place]
        # In the order in which a source adds up, so that sending everything entry by entry gives the same bits.
        accumulated += self._advance(gradient, place)
        if self.options.nesterov:
            accumulated += gradient
        gradient[:] = accumulated
        accumulated[:] = 0.0

    def dense(self, gradient: Anywhere, place: slice) -> None:
        velocity = self._advance(gradient, place)
        if self.options.nesterov:
            gradient += velocity
        else:
            gradient[:] = velocity

    def vectors(self) -> dict[str, Anywhere]:
        return {"velocity": self.velocity, "accumulated": self.accumulated}

    def _advance(self, gradient: Anywhere, place: slice) -> Anywhere:
        velocity = self.velocity[place]
        if self.options.nesterov:
            velocity += gradient
            velocity *= self.options.momentum
        else:
            velocity *= self.options.momentum
            velocity += gradient
        return velocity
