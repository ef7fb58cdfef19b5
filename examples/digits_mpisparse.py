"""The same program on any number of MPI ranks: five lines more. Compare with digits_plain.py.

mpirun -n 4 python examples/digits_mpisparse.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mpisparse as ms
from mpisparse.training.data import digits


def main() -> None:
    """Train, and print the accuracy on the test set."""
    comm = ms.init()
    torch.manual_seed(0)
    train, test = digits.load()
    loader = DataLoader(TensorDataset(*train.batch(torch.arange(len(train)))), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = ms.DistributedOptimizer(optimizer, model, sparsifier=ms.TopK(density=0.01), comm=comm)
    loader = ms.shard(loader, comm=comm)
    for _ in range(20):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    inputs, targets = test.batch(torch.arange(len(test)))
    accuracy = (model(inputs).argmax(1) == targets).float().mean()
    if comm.rank == 0:
        print(f"test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
