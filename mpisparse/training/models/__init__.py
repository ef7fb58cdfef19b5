"""Models to train, and the losses they are trained on.

Every model is built as `Model(input_shape, num_classes, **options)`, from `dataset.input_shape` and
`dataset.num_classes`, and draws its initial parameters from torch's global generator: equal seeds, equal parameters.
`LogisticRegression` and `LinearSVM` give their own loss by `model.loss(l2=...)`; all others are trained with
`CrossEntropy`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from mpisparse.training.models.cnn import CNN
from mpisparse.training.models.logistic import LogisticLoss, LogisticRegression
from mpisparse.training.models.losses import CrossEntropy, Loss, MarginLoss, Penalty
from mpisparse.training.models.mlp import MLP
from mpisparse.training.models.resnet import ResNet
from mpisparse.training.models.small_cnn import SmallCNN
from mpisparse.training.models.svm import HingeLoss, LinearSVM
from mpisparse.training.models.transformer import CharacterTransformer

MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "cnn": CNN,
        "logistic": LogisticRegression,
        "mlp": MLP,
        "resnet": ResNet,
        "small_cnn": SmallCNN,
        "svm": LinearSVM,
        "transformer": CharacterTransformer,
    }
)

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "CharacterTransformer",
    "CrossEntropy",
    "HingeLoss",
    "LinearSVM",
    "LogisticLoss",
    "LogisticRegression",
    "Loss",
    "MarginLoss",
    "Penalty",
    "ResNet",
    "SmallCNN",
]
