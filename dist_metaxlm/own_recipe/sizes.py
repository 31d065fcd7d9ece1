"""The dial of model sizes: five names, or a number of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dist_metaxlm.errors import UserError
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.schema import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model without its vocabulary, and the lengths that go with it."""

    layers: int
    """Blocks."""
    hidden: int
    """Width."""
    heads: int
    """Attention heads."""
    ffn: int
    """Width of the feed-forward layer after the gate."""
    source: str
    """Origin of the shape, for the recipe's comment."""
    largest_vocabulary: int
    """Token ids, if the text is rich enough."""
    window: int
    """Tokens of a window."""

    def model(self, vocabulary: int) -> ModelConfig:
        """The model with `vocabulary` token ids."""
        return ModelConfig(
            family="modern",
            norm="pre",
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            ffn=self.ffn,
            vocab_size=vocabulary,
            max_positions=self.window,
            embedding_std=0.1,
        )


SIZES = {
    "tiny": Shape(
        layers=4, hidden=128, heads=4, ffn=512, source="the quickstart's shape", largest_vocabulary=16_000, window=128
    ),
    "small": Shape(
        layers=22, hidden=384, heads=6, ffn=1152, source="mmBERT small's shape", largest_vocabulary=64_000, window=256
    ),
    "base": Shape(
        layers=22, hidden=768, heads=12, ffn=1152, source="mmBERT base's shape", largest_vocabulary=256_000, window=512
    ),
    "large": Shape(
        layers=28, hidden=1024, heads=16, ffn=2624, source="ModernBERT large's shape", largest_vocabulary=256_000, window=512
    ),
    "xl": Shape(
        layers=32, hidden=2048, heads=32, ffn=5248, source="a shape of ours", largest_vocabulary=256_000, window=512
    ),
}
"""mmBERT: arXiv 2509.06888; ModernBERT: arXiv 2412.13663."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def parse_parameters(text: str) -> int:
    """`40M`, `1.5B` or a plain number. Errors: UserError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMgGbB]?)", text.strip())
    if match is None or not float(match[1]):
        raise UserError(f"--params {text!r} is not a number of parameters such as 40M or 1.5B; write one")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def total(shape: Shape, vocabulary: int) -> int:
    """Parameters with `vocabulary` token ids."""
    return count_parameters(shape.model(vocabulary)).total


def shape_of(parameters: int, vocabulary: int) -> Shape:
    """The shape whose number of parameters with `vocabulary` token ids is nearest; width 16 to 64 times the depth.

    Errors: UserError if the vocabulary alone needs more or the number is beyond the largest shape, with the nearest number.
    """
    limits = next(
        (s for s in SIZES.values() if parameters <= 2 * total(s, min(vocabulary, s.largest_vocabulary))), SIZES["xl"]
    )
    candidates = [
        Shape(
            layers=layers,
            hidden=hidden,
            heads=max(4, hidden // 64),
            ffn=3 * hidden // 2,
            source="a shape of ours for this number of parameters",
            largest_vocabulary=limits.largest_vocabulary,
            window=limits.window,
        )
        for hidden in (*range(64, 1024, 64), *range(1024, 4097, 256))
        for layers in range(2, 49)
        if 16 <= hidden / layers <= 64
    ]
    best = min(candidates, key=lambda shape: abs(total(shape, vocabulary) - parameters))
    nearest = total(best, vocabulary)
    if abs(nearest - parameters) > 0.2 * parameters:
        raise UserError(
            f"--params {parameters:,} cannot be met with a vocabulary of {vocabulary:,}; the nearest model has {nearest:,}: "
            f"give --params {nearest}, or another --vocabulary"
        )
    return best
