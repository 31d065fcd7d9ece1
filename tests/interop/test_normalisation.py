"""Each normalisation of the recipe: what it keeps, and that the exported tokenizer does the same."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.interop.normalisation import NAMES, normalisation_name, table
from dist_metaxlm.interop.tokenizer_import import read_tokenizer
from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE, export_tokenizer
from dist_metaxlm.preparation.tokenizing.training import TextSample, train_tokenizer
from dist_metaxlm.recipe.schema import TokenizerConfig

sys.path.insert(0, str(Path(__file__).parent))
from tokenizer_texts import HOSTILE, SENTENCES

KEPT = {"زبان فارسی می‌رود": "می‌رود", "น้ำดื่ม": "น้ำ", "½ litre": "½", "x² + y²": "x²", "ＡＢＣ１２": "ＡＢＣ"}
"""Texts and a part of them that XLM-R's table changes."""


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Name of a normalisation and a model that prepare trains with it."""
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    text = TextSample((*SENTENCES, *KEPT, *(text for text in HOSTILE if text.strip())) * 4)
    train_tokenizer({"en": text}, TokenizerConfig(normalisation=request.param, character_coverage=0.98), 740, path)
    return request.param, path


@pytest.fixture(scope="module")
def exported(trained: tuple[str, Path]) -> Any:
    from transformers import AutoTokenizer

    export_tokenizer(trained[1], trained[1].parent / "exported")
    return AutoTokenizer.from_pretrained(str(trained[1].parent / "exported"), local_files_only=True)


def test_the_model_says_what_it_does(trained: tuple[str, Path]) -> None:
    name, path = trained
    tokenizer = Tokenizer.load(path)
    assert tokenizer.normalisation == name
    for text, part in KEPT.items():
        came = part in tokenizer.decode(tokenizer.encode(text))
        assert came == (name == "identity" or (name == "nfkc" and "\u200c" in part)), (name, part)


def test_an_export_gives_the_same_ids(trained: tuple[str, Path], exported: Any) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained[1]))
    pieces = [word for text in (*SENTENCES, *HOSTILE, *KEPT) for word in (text[:3], text[3:9], text[-4:])]
    draw = random.Random(3)
    mixtures = ["".join(draw.choice(pieces) for _ in range(draw.randint(1, 6))) for _ in range(1000)]
    for text in (*SENTENCES, *HOSTILE, *KEPT, "▁a", " ▁a", "a▁ ▁▁b▁", "▁", *mixtures):
        assert exported(text, add_special_tokens=False).input_ids == processor.encode(text), ascii(text)


def test_an_export_without_its_sentencepiece_file_comes_back(trained: tuple[str, Path], exported: Any) -> None:
    name, path = trained
    (path.parent / "exported" / SENTENCEPIECE_FILE).unlink()
    again = read_tokenizer(path.parent / "exported", len(exported))
    assert again is not None
    mine, theirs = (sentencepiece.SentencePieceProcessor(model_proto=model) for model in (path.read_bytes(), again.model))
    for text in (*SENTENCES, *KEPT):
        assert mine.encode(text) == theirs.encode(text)
    (path.parent / "again.model").write_bytes(again.model)
    assert Tokenizer.load(path.parent / "again.model").normalisation == name


def test_words_and_offsets_on_plain_text(exported: Any) -> None:
    for text, words in {
        "The user, twice  here": ["The", "user,", "twice", "here"],
        "Die Straße ist groß.": ["Die", "Straße", "ist", "groß."],
        "Привет, мир": ["Привет,", "мир"],
    }.items():
        encoded = exported(text, return_offsets_mapping=True, add_special_tokens=False)
        found: dict[int, list[int]] = {}
        for number, (first, last) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
            found.setdefault(number, []).extend((first, last))
        assert [text[min(places) : max(places)] for places in found.values()] == words
        assert list(found) == list(range(len(words)))


def test_offsets_and_words_around_a_mask(exported: Any) -> None:
    text = "The <mask> user, <mask>."
    encoded = exported(text, return_offsets_mapping=True, add_special_tokens=False)
    spans = [(first, last) for first, last in encoded["offset_mapping"] if "<mask>" not in text[first:last]]
    # A piece that is the space alone has the place of the letter behind it, as in XLM-R's own tokenizer.
    assert {place for span in spans for place in range(*span)} == {0, 1, 2, *range(11, 16), 23}
    assert sorted(set(encoded.word_ids())) == list(range(5))
    assert encoded.char_to_word(text.index("user")) == encoded.char_to_word(text.index("ser,"))


def test_tokens_that_a_user_adds_are_found(exported: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    exported.save_pretrained(tmp_path)
    own = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    own.add_tokens(["kürzel", "<de>"])
    assert {own.convert_tokens_to_ids("kürzel"), own.convert_tokens_to_ids("<de>")} <= set(own("ein kürzel<de>x").input_ids)


def test_tables_are_known_by_their_bytes() -> None:
    assert [normalisation_name(table(name)) for name in NAMES] == list(NAMES)
    assert normalisation_name(b"another") == "nmt_nfkc"
