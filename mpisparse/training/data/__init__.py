"""Data sets in memory, whole on every rank.

`LOADERS` maps the name of a data set to the function that loads it; each returns `Split(train, test)` and documents
its options. A model is built from `train.input_shape` and `train.num_classes`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mpisparse.training.data import cifar10, digits, libsvm, mnist, synthetic, text
from mpisparse.training.data.base import Dataset, Split, TensorDataset
from mpisparse.training.data.libsvm import SparseDataset
from mpisparse.training.data.text import TextDataset, Vocabulary

LOADERS: Mapping[str, Callable[..., Split]] = MappingProxyType(
    {
        "cifar10": cifar10.load,
        "digits": digits.load,
        "libsvm": libsvm.load,
        "mnist": mnist.load,
        "synthetic": synthetic.load,
        "synthetic_svm": synthetic.load_svm,
        "text": text.load,
    }
)

#: Where data sets come from that do not come with the package.
HOMES: Mapping[str, str] = MappingProxyType(
    {"cifar10": cifar10.HOME, "libsvm": libsvm.HOME, "mnist": mnist.HOME, "text": text.HOME}
)

__all__ = [
    "HOMES",
    "LOADERS",
    "Dataset",
    "SparseDataset",
    "Split",
    "TensorDataset",
    "TextDataset",
    "Vocabulary",
]
