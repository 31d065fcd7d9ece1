"""Masked-token perplexity: exp of the mean negative log likelihood of hidden tokens in held-out text.

15% of the eligible tokens are hidden, all of them by `<mask>` (no 80/10/10, as in Dufter and Schuetze, EMNLP 2020), so
the score measures prediction only. A hash of the text selects the hidden tokens, so they are the same for every
checkpoint. Compare figures between checkpoints of one tokenizer; between languages they depend on how
finely the tokenizer cuts each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.evaluation.measures.embed import SPECIALS, SentencePack, inference, pack_sentences

if TYPE_CHECKING:
    from dist_metaxlm.modeling.encoder import Encoder

MASK_RATE = 0.15
MAX_PROSE_TOKENS = 40_000
"""Tokens of held-out prose read per language; more would not change the result noticeably."""


@dataclass(frozen=True)
class MaskedSentence:
    """A sentence's ids and the positions to hide."""

    ids: list[int]
    hidden: list[int]
    """Indices into `ids`, ascending."""


def mask_sentence(text: str, ids: list[int], special: np.ndarray, rate: float = MASK_RATE) -> MaskedSentence:
    """Choose `rate` of the eligible ids of a sentence, by a hash of its text and of their place.

    The count is rounded up or down by the hash as well, so that over many short strings the share is `rate`.

    Args:
        text: key of the hash.
        ids: its ids, without `<s>` and `</s>`.
        special: [V] bool, ids that are never hidden.
    """
    eligible = [place for place, token in enumerate(ids) if not special[token]]
    key = hashlib.blake2b(text.encode("utf-8"), digest_size=32).digest()
    count = int(rate * len(eligible) + _fraction(key, -1))
    chosen = sorted(eligible, key=lambda place: _fraction(key, place))[:count]
    return MaskedSentence(ids, sorted(chosen))


def _fraction(key: bytes, place: int) -> float:
    """A number in [0, 1) that depends only on the key and the position."""
    digest = hashlib.blake2b(place.to_bytes(8, "little", signed=True), key=key, digest_size=6).digest()
    return int.from_bytes(digest, "little") / 2**48


def read_prose(path: Path, tokenizer: Tokenizer, window: int, max_tokens: int = MAX_PROSE_TOKENS) -> list[MaskedSentence]:
    """Held-out prose (a paragraph a line, a blank line between documents) as windows of masked text."""
    pieces: list[MaskedSentence] = []
    total = 0
    # As bytes: reading as text would turn carriage returns inside of a paragraph into line ends.
    for document in path.read_bytes().decode("utf-8").split("\n\n"):
        text = " ".join(document.split())
        ids = tokenizer.encode(text)
        for first in range(0, len(ids), window - SPECIALS):
            part = ids[first : first + window - SPECIALS]
            pieces.append(mask_sentence(f"{first} {text}", part, tokenizer.special))
            total += len(part)
        if total >= max_tokens:
            break
    return pieces


def masked_perplexity(
    encoder: Encoder, sentences: Sequence[MaskedSentence], mask_id: int, window: int = 128, max_tokens: int = 8192
) -> float | None:
    """exp of the mean negative log likelihood over all hidden tokens; None if no token is hidden.

    Args:
        encoder: the model, on any device.
        sentences: ids and hidden positions.
        mask_id: id of `<mask>`.
        window: tokens of a window, special tokens included; longer sentences are cut.
        max_tokens: tokens that go through the encoder at once.
    """
    device = next(encoder.parameters()).device
    asked = [sentence for sentence in sentences if any(place < window - SPECIALS for place in sentence.hidden)]
    total, count = 0.0, 0
    with inference(encoder):
        for pack in pack_sentences([hide(sentence, mask_id) for sentence in asked], window, max_tokens):
            targets, answers = hidden_targets(pack, asked, window)
            states = encoder(pack.batch.to(device))
            losses = encoder.masked_lm_loss(states, targets.to(device), answers.to(device))
            total += float(losses.double().sum())
            count += targets.numel()
    return math.exp(total / count) if count else None


def masked_losses(
    encoder: Encoder, sentences: Sequence[MaskedSentence], mask_id: int, window: int = 128, max_tokens: int = 8192
) -> list[tuple[float, int]]:
    """(sum of negative log likelihoods in nats, number of hidden tokens) of every sentence, in its order.

    Args: as `masked_perplexity`, which is exp of the quotient of both sums.
    """
    device = next(encoder.parameters()).device
    places = [number for number, of in enumerate(sentences) if any(place < window - SPECIALS for place in of.hidden)]
    asked = [sentences[number] for number in places]
    results = [(0.0, 0)] * len(sentences)
    with inference(encoder):
        for pack in pack_sentences([hide(sentence, mask_id) for sentence in asked], window, max_tokens):
            targets, answers = hidden_targets(pack, asked, window)
            states = encoder(pack.batch.to(device))
            losses = encoder.masked_lm_loss(states, targets.to(device), answers.to(device)).double().flatten().tolist()
            begin = 0
            for number in (index for index in pack.index.tolist() if index >= 0):
                count = sum(place < window - SPECIALS for place in asked[number].hidden)
                results[places[number]] = (sum(losses[begin : begin + count]), count)
                begin += count
    return results


def hide(sentence: MaskedSentence, mask_id: int) -> list[int]:
    """The ids with `<mask>` at the hidden positions."""
    ids = list(sentence.ids)
    for place in sentence.hidden:
        ids[place] = mask_id
    return ids


def hidden_targets(
    pack: SentencePack, sentences: Sequence[MaskedSentence], window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat positions [M] of the hidden tokens of a pack, ascending, and the original ids [M]."""
    places: list[int] = []
    answers: list[int] = []
    for start, number in zip(pack.batch.cu_seqlens.tolist(), pack.index.tolist(), strict=False):
        if number < 0:
            continue
        for place in sentences[number].hidden:
            if place < window - SPECIALS:
                places.append(start + 1 + place)
                answers.append(sentences[number].ids[place])
    return torch.tensor(places, dtype=torch.int64), torch.tensor(answers, dtype=torch.int64)
