"""Batches for `metaxlm benchmark throughput`: translation pairs of a store, or generated documents."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from dist_metaxlm.benchmarking.kernels.cases import lognormal_lengths
from dist_metaxlm.data.batch import PackedBatch
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import Recipe, TranslationLM

MEDIAN = 60
"""Tokens, of the lognormal lengths of generated documents."""


def stored_batches(recipe: Recipe, batch_tokens: int, count: int) -> list[PackedBatch]:
    """`count` batches of windows of translation pairs from the recipe's store, or another one whose ids fit the model.

    Raises:
        UserError: the store is missing, or has ids beyond the model's vocabulary.
    """
    from dist_metaxlm.data.loader import PhaseData
    from dist_metaxlm.data.tokenizer import Tokenizer
    from dist_metaxlm.data.tokens.store import TokenStore

    directory = Path(recipe.data.directory)
    if not (directory / "store" / "manifest.json").is_file():
        raise UserError(f"no token store in {directory}; run `metaxlm prepare` first")
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise UserError(
            f"the store in {directory} has {tokenizer.vocab_size} token ids, the model only "
            f"{recipe.model.vocab_size}; give a data.directory made for this recipe"
        )
    objective = TranslationLM(batch_tokens=batch_tokens)
    phase = recipe.phase("cross").model_copy(update={"objectives": [objective], "languages": "all"})
    data = PhaseData(TokenStore.open(directory / "store"), tokenizer, "cross", phase, recipe.seed)
    windows = batch_tokens // phase.sequence_length
    return [data.batch(objective, step * windows, windows) for step in range(count)]


def generated_batches(recipe: Recipe, batch_tokens: int, count: int) -> list[PackedBatch]:
    """`count` batches of random ids in documents of lognormal lengths, windows full, with the recipe's share of targets."""
    phase, rng = recipe.phase("cross"), random.Random(recipe.seed)
    window = phase.sequence_length
    windows, share = max(1, batch_tokens // window), round(phase.mask_rate * window)
    generator = torch.Generator().manual_seed(recipe.seed)
    batches = []
    for step in range(count):
        counts = torch.tensor([length for _ in range(windows) for length in lognormal_lengths(rng, window, MEDIAN)])
        cuts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        tokens = torch.randint(5, recipe.model.vocab_size - 1, (windows * window,), generator=generator)
        chosen = torch.rand(windows, window, generator=generator).argsort(1)[:, :share].sort(1).values
        targets = (chosen + torch.arange(windows).unsqueeze(1) * window).flatten()
        target_tokens = tokens[targets]
        tokens[targets] = recipe.model.vocab_size - 1
        positions = torch.arange(windows * window) - torch.repeat_interleave(cuts[:-1], counts)
        batches.append(
            PackedBatch(
                tokens,
                positions,
                cuts.to(torch.int32),
                window,
                torch.arange(windows) + step * windows,
                torch.zeros(windows, dtype=torch.int64),
                targets,
                target_tokens,
            )
        )
    return batches
