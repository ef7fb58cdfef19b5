"""The blocks of Python of some pages, those of a page one after another in one namespace, on each rank.

mpirun -n 2 python tests/mpi/page.py docs/user-guide.md
"""

from __future__ import annotations

import sys
from typing import Any

from tests.pages import WHOLE, block_of, parse
from tests.paths import CHECKOUT

#: What stands for `...` in fragments of a loop: the body of the loop that the page shows before.
BODY = """\
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            done += 1
"""


def world() -> dict[str, Any]:
    """Return what a reader of the user guide has before the first block: a plain PyTorch program."""
    import time

    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    import mpisparse as ms

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    samples = TensorDataset(torch.randn(128, 8), torch.arange(128) % 4)
    loader = DataLoader(samples, batch_size=16, shuffle=True)
    inputs, targets = next(iter(loader))
    return {
        "torch": torch,
        "time": time,
        "nn": nn,
        "model": model,
        "loader": loader,
        "loss_fn": nn.functional.cross_entropy,
        "plain": torch.optim.SGD(model.parameters(), lr=0.01),
        "inputs": inputs,
        "targets": targets,
        "deadline": time.monotonic() + 3600,
        "steps": 4,
        "done": 0,
        "replicated": {"model": model.state_dict()},
        "own": {},
        "checkpointer": lambda comm: ms.Checkpointer("fragments", comm=comm),
    }


def main(page: str) -> None:
    """Run the blocks; an error has the line of the page in its traceback."""
    document = parse(CHECKOUT / page)
    if page == "docs/user-guide.md":
        document.namespace.update(world())
    for example in document.examples():
        if block_of(example).language != "python" or WHOLE in example.parsed:
            continue
        space = document.namespace
        space["done"] = 0
        if callable(space.get("checkpointer")) and "comm" in space:
            space["checkpointer"] = space["checkpointer"](space["comm"])
        source = example.parsed.replace("        ...\n", BODY)
        code = compile("\n" * (example.line + example.parsed.line_offset) + source, example.path, "exec")
        exec(code, space)
        print(f"ran {block_of(example).line}", file=sys.stderr)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(argument)
