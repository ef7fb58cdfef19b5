"""A program that can be killed at any moment and started again: it ends with the same bits.

mpirun -n 2 python examples/resume.py 200
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpisparse as ms
from mpisparse.training.data import digits


def main(steps: int, directory: str, every: int, workers: int) -> None:
    """Train for `steps` steps in all, and save every `every` steps what it takes to go on."""
    comm = ms.init()
    train, _ = digits.load()
    data = TensorDataset(*train.batch(torch.arange(len(train))))
    loader = ms.shard(DataLoader(data, batch_size=32, shuffle=True, num_workers=workers), comm=comm)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = ms.DistributedOptimizer(optimizer, model, sparsifier=ms.TopK(density=0.01), comm=comm)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 60, gamma=0.5)
    checkpointer = ms.Checkpointer(directory, keep=2, comm=comm)
    torch.manual_seed(1000 + comm.rank)  # Dropout is to differ between ranks.

    done = 0
    restored = checkpointer.restore()
    if restored is not None:
        done = restored.step
        model.load_state_dict(restored.replicated["model"])
        optimizer.optimizer.load_state_dict(restored.replicated["optimizer"])
        schedule.load_state_dict(restored.replicated["schedule"])
        loader.load_state_dict(restored.replicated["loader"])
        optimizer.exchange.load_state_dict(restored.per_rank["exchange"])
        torch.set_rng_state(restored.per_rank["random"])

    while done < steps:
        for inputs, targets in loader:  # goes on within the epoch
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step(samples=len(inputs))
            schedule.step()
            done += 1
            if done % every == 0:
                replicated = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "loader": loader.state_dict(),
                }
                own = {"exchange": optimizer.exchange.state_dict(), "random": torch.get_rng_state()}
                checkpointer.save(done, replicated, own)
            if done == steps:
                break
    total = sum(p.double().sum() for p in model.parameters())
    print(f"rank {comm.rank}: {done} steps, epoch {loader.epoch}, sum of parameters {total:.17g}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int, nargs="?", default=200)
    parser.add_argument("--directory", default="checkpoints")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    main(arguments.steps, arguments.directory, arguments.every, arguments.workers)
