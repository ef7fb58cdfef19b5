"""A plain PyTorch program: handwritten digits on one process. Compare with digits_mpisparse.py.

python examples/digits_plain.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mpisparse.training.data import digits


def main() -> None:
    """Train, and print the accuracy on the test set."""
    torch.manual_seed(0)
    train, test = digits.load()
    loader = DataLoader(TensorDataset(*train.batch(torch.arange(len(train)))), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        for inputs, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    inputs, targets = test.batch(torch.arange(len(test)))
    accuracy = (model(inputs).argmax(1) == targets).float().mean()
    print(f"test accuracy {accuracy:.2%}")


if __name__ == "__main__":
    main()
