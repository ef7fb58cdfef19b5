"""After the rehearsal no kernel is compiled any more: no step of a run waits for a compiler."""

from __future__ import annotations

import sys

import pytest

from tests.launch import run

#: Run in a process of its own, as other tests have kernels compiled in this one.
PROGRAM = """
import sys
import torch
from numba.core.dispatcher import Dispatcher
import mpisparse as ms
from mpisparse.comm import solo

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("mpisparse.")]
    kernels = {{id(k): k for module in modules for k in vars(module).values() if isinstance(k, Dispatcher)}}
    return {{f"{{k.py_func.__module__}}.{{k.py_func.__name__}}": len(k.signatures) for k in kernels.values()}}

said = []
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(300, 100), torch.nn.Linear(100, 3))
optimizer = ms.DistributedOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.0), model, {options}, comm=solo(), say=said.append
)
assert said[0].startswith("kernels "), said
before = compiled()
assert sum(before.values()) > 0, before
for step in range(4):
    optimizer.zero_grad()
    scale = 10.0 ** (step % 2)  # a threshold that is tracked has to be found anew
    (model(torch.randn(5, 300)) * scale).square().sum().backward()
    optimizer.step()
after = compiled()
late = [name for name, count in after.items() if count > before.get(name, 0)]
assert not late, late
print("none was late")
"""

OPTIONS = [
    "sparsifier=ms.Dense()",
    "sparsifier=ms.TopK(0.01)",
    "sparsifier=ms.TrackedTopK(0.01)",
    "sparsifier=ms.TopK(0.01), memory=ms.MomentumCorrection(), wire=ms.Wire('bfloat16')",
    "sparsifier=ms.TopK(0.3), wire=ms.Wire('sign')",
    "sparsifier=ms.TopK(0.01), memory=ms.NoMemory(), wire=ms.Wire('float16', indices='blocks')",
    "sparsifier=ms.GSpar(density=0.05)",
    "sparsifier=ms.GSpar(variance=1.0)",
    "sparsifier=ms.GSpar(density=0.05, iterations=2)",
    "sparsifier=ms.Uniform(0.05)",
    "sparsifier=ms.QSGD()",
    "sparsifier=ms.QSGD(bits=2, bucket=None)",
    "sparsifier=ms.TernGrad(clip=2.5)",
    "sparsifier=ms.Threshold(0.01)",
    "sparsifier=ms.TopK(ms.DenseWarmup(0.01, steps=2))",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_no_kernel_is_compiled_in_a_step(options: str) -> None:
    outcome = run([sys.executable, "-c", PROGRAM.format(options=options)], timeout=120, fresh=True)
    assert outcome.code == 0, outcome.text
    assert "none was late" in outcome.stdout
