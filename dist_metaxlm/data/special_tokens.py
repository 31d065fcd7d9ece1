"""Ids of the special tokens, the same in every tokenizer of this project and in XLM-R's; `<mask>` is the last id."""

from __future__ import annotations

BOS, PAD, EOS, UNK = 0, 1, 2, 3
