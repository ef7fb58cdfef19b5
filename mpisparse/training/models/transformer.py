"""A small decoder-only transformer that predicts the next character (after Radford et al., GPT-2, 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpisparse.errors import ConfigError
from mpisparse.training.models.shapes import positive


class CharacterTransformer(nn.Module):
    """Layers of causal attention and of a perceptron, each behind a layer norm and around a residual.

    The logits at a position depend on the characters up to it only. Has 0.8 million parameters by default. There is
    no dropout, so that training is repeatable from the seed of the initial parameters alone.

    Args:
        input_shape: (length,) of a window.
        num_classes: characters of the vocabulary.
        layers: number of layers.
        width: features of a character inside.
        heads: attention heads, which must divide the width.
        context: the most characters a window may have; the length of `input_shape` unless given.
        tied: whether one matrix embeds the characters and gives the logits, or each has its own.

    Raises:
        ConfigError: a count is below 1, heads do not divide the width, samples are no windows or exceed the context.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        layers: int = 4,
        width: int = 128,
        heads: int = 4,
        context: int | None = None,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigError(
                f"transformer needs windows of characters, of shape (length,), not samples of shape "
                f"{tuple(input_shape)}: choose another model or data set"
            )
        context = input_shape[0] if context is None else context
        positive(layers=layers, width=width, heads=heads, context=context)
        if width % heads:
            raise ConfigError(f"heads {heads} must divide width {width}: give width as a multiple of heads")
        if input_shape[0] > context:
            raise ConfigError(f"windows of {input_shape[0]} characters exceed context {context}: raise context")
        self.embedding = nn.Embedding(num_classes, width)
        self.position = nn.Parameter(torch.empty(context, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = None if tied else nn.Linear(width, num_classes, bias=False)
        self._initialise(layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of shape (n, length, num_classes) for tokens, int64 of shape (n, length).

        Raises:
            ConfigError: the windows are longer than the context.
        """
        length, context = tokens.shape[1], self.position.shape[0]
        if length > context:
            raise ConfigError(f"windows of {length} characters exceed context {context}: raise context, or cut them")
        hidden = self.norm(self.layers(self.embedding(tokens) + self.position[:length]))
        return functional.linear(hidden, self.embedding.weight if self.head is None else self.head.weight)

    def _initialise(self, layers: int) -> None:
        """Return nothing: draw all matrices, those that write to the residual so that its variance does not grow."""
        nn.init.normal_(self.position, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                writes = name.endswith("write")
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if writes else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), _Attention(width, heads)
        self.perceptron_norm, self.perceptron = nn.LayerNorm(width), _Perceptron(width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden))
        result: Tensor = hidden + self.perceptron(self.perceptron_norm(hidden))
        return result


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.read = nn.Linear(width, 3 * width)
        self.write = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        count, length, width = hidden.shape
        # (n, length, 3 * width) to three of (n, heads, length, width / heads)
        split = self.read(hidden).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        written: Tensor = self.write(mixed.transpose(1, 2).reshape(count, length, width))
        return written


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, 4 * width)
        self.write = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        written: Tensor = self.write(functional.gelu(self.read(hidden)))
        return written
