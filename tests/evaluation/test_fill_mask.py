"""Which word, or which piece of a text without spaces, is hidden."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tiny_tokenizer import train_tokenizer

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.fill_mask import hide_heldout_words, hide_word

ENGLISH, JAPANESE = "where is the old station of this town", "この町の古い駅はどこにありますか"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    parts = [ENGLISH, *ENGLISH.split()]
    train_tokenizer(parts * 20, folder, 400)
    return Tokenizer.load(folder / "tokenizer.model")


def test_a_word_or_else_a_piece_is_hidden(tokenizer):
    text, hidden = hide_word(["too short", ENGLISH], "en", tokenizer)
    assert text.replace("<mask>", hidden) == ENGLISH
    assert hidden in ENGLISH.split()[1:]
    pieces = ["▁", "この", "町", "の", "古い", "駅は", "どこに", "ありますか"]
    cut = SimpleNamespace(encode=lambda text: list(range(8)) if text == JAPANESE else [0, 1], pieces=lambda: pieces)
    assert hide_word([JAPANESE], "ja", cut) == (JAPANESE.replace("古い", "<mask>"), "古い")


def test_a_language_without_a_fitting_string_is_told_from_one_without_any(tokenizer, tmp_path):
    (tmp_path / "strings.jsonl").write_text(json.dumps({"en": "a", "ja": "駅"}, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="no held-out string in 'ja' has 4 to 9 words"):
        hide_heldout_words(tmp_path, tokenizer, ["ja"])
    with pytest.raises(UserError, match=r"--fill_mask ar: there are no held-out strings in that .* choose from en, ja"):
        hide_heldout_words(tmp_path, tokenizer, ["ar"])
