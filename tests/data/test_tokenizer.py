"""The tokenizer: layout of ids, the temperature-sampled mix, determinism, and errors that name the remedy."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from dist_metaxlm.data.special_tokens import BOS, EOS, PAD, UNK
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.tokenizing import training as tokenizer_training
from dist_metaxlm.preparation.tokenizing.training import TextSample, draw, poorly_served, quotas, train_tokenizer
from dist_metaxlm.preparation.tokenizing.training import report as training_report
from dist_metaxlm.recipe.schema import TokenizerConfig

VOCAB = 500


def words(seed: int, letters: str, lines: int) -> list[str]:
    """Lines of made-up words."""
    rng = random.Random(seed)
    stems = ["".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(300)]
    return [" ".join(rng.choices(stems, k=rng.randint(4, 12))).capitalize() for _ in range(lines)]


SAMPLES = {"aa": words(1, "abcdefghijklmnop", 800), "zz": words(2, "абвгдежзиклмнопр", 200)}
DRAWABLE = {language: TextSample(texts) for language, texts in SAMPLES.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, dict]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    report = train_tokenizer(DRAWABLE, TokenizerConfig(sample_bytes=60_000), VOCAB, path)
    return Tokenizer.load(path), report


def test_ids_are_laid_out_as_the_contract_says(trained) -> None:
    tokenizer, _ = trained
    pieces = tokenizer.pieces()
    assert tokenizer.vocab_size == VOCAB == len(pieces)
    assert [pieces[i] for i in (BOS, PAD, EOS, UNK, tokenizer.mask_id)] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.mask_id == VOCAB - 1
    assert np.flatnonzero(tokenizer.special).tolist() == [0, 1, 2, 3, VOCAB - 1]
    assert tokenizer.word_begin.tolist() == [piece.startswith("\u2581") for piece in pieces]
    assert tokenizer.word_begin.any()


def test_text_survives_even_with_characters_never_seen(trained) -> None:
    tokenizer, _ = trained
    text = f"{SAMPLES['aa'][3]} 你好 {SAMPLES['zz'][5]}"
    ids = tokenizer.encode(text)
    assert UNK not in ids
    assert tokenizer.decode([BOS, *ids, EOS, tokenizer.mask_id]) == text
    assert max(ids) < tokenizer.mask_id


def test_batches_encode_like_single_texts(trained) -> None:
    tokenizer, _ = trained
    texts = [*SAMPLES["aa"][:40], "", "<s> <mask> </s>"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts, threads=3) == tokenizer.encode_batch(texts)
    assert not tokenizer.special[tokenizer.encode("<s> <mask> </s>")].any()


def test_flat_ids_are_those_of_each_text_between_its_special_tokens(trained) -> None:
    tokenizer, _ = trained
    short = ["ab", "", "  ", *SAMPLES["aa"][:9]]
    for texts in ([], short, [" ".join(SAMPLES["aa"][:30]), *short], [""]):
        rows = [[BOS, *tokenizer.encode(text), EOS] for text in texts]
        flat, counts = tokenizer.encode_flat(texts)
        assert flat.dtype == np.int32
        assert flat.tolist() == [number for row in rows for number in row]
        assert counts.tolist() == [len(row) for row in rows]


def test_the_same_text_gives_the_same_file_and_hash(trained, tmp_path: Path) -> None:
    tokenizer, report = trained
    again = train_tokenizer(DRAWABLE, TokenizerConfig(sample_bytes=60_000), VOCAB, tmp_path / "again.model")
    assert Tokenizer.load(tmp_path / "again.model").hash == tokenizer.hash
    assert again == report
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]


def test_the_report_tells_of_each_language(trained) -> None:
    _, report = trained
    assert set(report) == {"aa", "zz"}
    assert all(
        row["unknown_rate"] == 0
        and row["byte_rate"] < 0.02
        and row["tokens_per_word"] > 1
        and 0 < row["vocabulary_share"] < 1
        for row in report.values()
    )


def test_the_report_counts_bytes_and_words(trained) -> None:
    tokenizer, _ = trained
    text = "你 好"
    ids = tokenizer.encode(text)
    row = training_report(tokenizer, {"zh": [text]})["zh"]
    assert row == {
        "bytes": 7,
        "tokens_per_word": len(ids) / 2,
        "bytes_per_token": round(7 / len(ids), 3),
        "unknown_rate": 0,
        "byte_rate": round(6 / len(ids), 6),
        "vocabulary_share": round(len(set(ids)) / VOCAB, 4),
    }


def test_a_language_that_the_tokenizer_hardly_knows_is_named(trained) -> None:
    tokenizer, report = trained
    assert list(poorly_served(report)) == []
    (said,) = poorly_served(report | training_report(tokenizer, {"zh": ["你好" * 9]}))
    assert re.match("the tokenizer covers 'zh' poorly: [0-9]+% of its tokens are single bytes or unknown", said)


def test_quotas_follow_alpha_and_pass_on_what_a_small_language_lacks() -> None:
    assert quotas({"en": 10_000, "de": 100}, 1.0, 1010) == {"en": 1000, "de": 10}
    assert quotas({"en": 10_000, "de": 10_000, "fr": 625}, 0.5, 900) == {"en": 400, "de": 400, "fr": 100}
    assert quotas({"en": 10_000, "de": 100}, 0.0, 1000) == {"de": 100, "en": 900}
    assert quotas({"en": 10, "de": 5}, 0.3, 1000) == {"en": 10, "de": 5}


def test_no_more_is_drawn_than_the_recipe_says() -> None:
    samples = {"en": TextSample(f"line {n}" for n in range(4000)), "de": TextSample(f"Zeile {n}" for n in range(100))}
    drawn = draw(samples, TokenizerConfig(alpha=0.0, sample_bytes=4000))
    assert len(drawn["de"]) == 100
    assert 4000 <= sum(len(text) for texts in drawn.values() for text in texts) <= 4010


def test_a_vocabulary_that_text_cannot_fill_names_the_largest_that_it_can(tmp_path: Path) -> None:
    text = {"aa": TextSample(SAMPLES["aa"][:30])}
    with pytest.raises(UserError, match=r"model\.vocab_size 9000 is more than this text can fill; set it to \d+") as caught:
        train_tokenizer(text, TokenizerConfig(), 9000, tmp_path / "t.model")
    assert not list(tmp_path.iterdir())
    largest = int(str(caught.value).split("set it to ")[1].split()[0])
    train_tokenizer(text, TokenizerConfig(), largest, tmp_path / "t.model")
    assert Tokenizer.load(tmp_path / "t.model").vocab_size == largest
    with pytest.raises(UserError, match=r"it fills \d+, less than any model needs: give more text"):
        train_tokenizer({"aa": TextSample(["two words"])}, TokenizerConfig(), 400, tmp_path / "u.model")
    with pytest.raises(UserError, match=r"give more text \(data\.tokenizer\.sample_bytes limits it to 50\)"):
        train_tokenizer(text, TokenizerConfig(sample_bytes=50), 9000, tmp_path / "u.model")
    with pytest.raises(UserError, match="has only white space and control characters"):
        train_tokenizer({"aa": TextSample(["\u200b \u200c"])}, TokenizerConfig(), 400, tmp_path / "u.model")


def test_a_folder_is_no_tokenizer_and_the_way_to_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give the SentencePiece model in it, or the tokenizer\.model"):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_too_small_for_the_characters_is_named(tmp_path: Path) -> None:
    many = {"zh": TextSample("".join(chr(0x4E00 + n) for n in range(start, start + 20)) for start in range(0, 1000, 20))}
    with pytest.raises(UserError, match=r"model\.vocab_size 400 is less than the \d+ pieces"):
        train_tokenizer(many, TokenizerConfig(character_coverage=1.0), 400, tmp_path / "t.model")


def test_no_text_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_tokenizer({"en": TextSample([])}, TokenizerConfig(), 500, tmp_path / "t.model")


def test_long_paragraphs_are_cut_not_skipped(tmp_path: Path) -> None:
    text = " ".join(SAMPLES["aa"])
    assert "".join(tokenizer_training._cut([text])) == text
    assert max(len(part.encode()) for part in tokenizer_training._cut([text])) <= tokenizer_training.SENTENCE_BYTES


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "junk.model").write_bytes(b"not a model at all")
    with pytest.raises(UserError, match=r"junk\.model is not a SentencePiece model; name a"):
        Tokenizer.load(tmp_path / "junk.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"model; make one of the Hugging Face folder that it is from"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLES["aa"]), model_writer=model, vocab_size=200, minloglevel=2
    )
    (tmp_path / "other.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match="train it with --bos_id=0 --pad_id=1 --eos_id=2 --unk_id=3"):
        Tokenizer.load(tmp_path / "other.model")
