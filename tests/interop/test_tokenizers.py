"""The exported tokenizer against SentencePiece itself, on ordinary and on hostile text."""

from __future__ import annotations

import random
import unicodedata

import pytest
import sentencepiece

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE, export_tokenizer

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Wählen Sie die gewünschte Größe für Ihre Straße.",
    "L'été dernier, nous avons mangé à la crêperie.",
    "El niño pequeño corrió mañana por la montaña.",
    "Đường phố Hà Nội rất đông người vào buổi tối.",
    "Быстрая лиса перепрыгнула через ленивую собаку.",
    "Їжак приніс ґудзик у кошик.",
    "Η γρήγορη αλεπού πήδηξε πάνω από το σκυλί.",
    "هذا كتاب جديد عن التاريخ الحديث.",
    "این کتاب درباره‌ی زبان فارسی است.",
    "הספר החדש נמצא על השולחן הגדול.",
    "यह हिन्दी की एक छोटी किताब है।",
    "এই বইটি খুব সুন্দর এবং ছোট।",
    "இந்தப் புத்தகம் மிகவும் நல்லது.",
    "ഈ പുസ്തകം വളരെ നല്ലതാണ്.",
    "ఈ పుస్తకం చాలా బాగుంది.",
    "หนังสือเล่มนี้ดีมากและน่าอ่าน",
    "这是一本关于历史的新书。",
    "これは新しい本です。とても面白いですよ。",
    "이 책은 매우 재미있고 새롭습니다.",
    "ეს წიგნი ძალიან კარგია.",
    "Այս գիրքը շատ լավն է։",
    "ይህ መጽሐፍ በጣም ጥሩ ነው።",
    "សៀវភៅនេះល្អណាស់។",
)
HOSTILE = (
    "",
    " ",
    "   ",
    "\t\n",
    " leading",
    "trailing ",
    "two  spaces   three",
    "a\u00a0b\u3000c\u2003d",
    "tab\tand\nline\r\nend",
    "\x01control \x02inside\x7f",
    "\x00",
    "\x85next line",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom",
    "👩‍👩‍👧‍👦 👍🏽 🇫🇷 ❤️ ™️ 🏴\U000e0067\U000e0062\U000e007f",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３ ～ ￥",
    "ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟ ｱｲｳ",
    "cafe\u0301 re\u0301sume\u0301 n\u0303",
    "Tie\u0302\u0301ng Vie\u0323\u0302t ê\u0301 ơ\u0301 a\u0308\u0323",
    "\u1112\u1161\u11ab\u1100\u1173\u11af 가\u11a8 ㄱㅏ ㅋㅋㅋ ㅠㅠ",
    "कि\u093c क़ ज़ \u0958",
    "\u0d46\u0d3e \u0dd9\u0dcf \u0bc6\u0bbe",
    "שָׁלוֹם בְּרֵאשִׁית \u05d1\u05b0\u05bc \u05d1\u05bc\u05b0",
    "شَدَّة \u0644\u0651\u064e \u0644\u064e\u0651 آ \u0627\u0653",
    "\u0e19\u0e49\u0e33 ทำ ຳ",
    "½ ① Ⅷ ﬁ ﷺ ㍿ … ŉ ǆ ẞ İ",
    "ẛ\u0323 Å Ω \u2126\u0345 \u0340 \u0301\u0301",
    "𠮷野家 龘 㐂 𪚥 鿿",
    "\ue000 \U000f0000 \ufffd",
    "<0x41> <0xFF>",
    "▁ ▁▁a",
    "\u202eright\u202c to left\u200f",
    "\u0301starts with a mark",
    "...... !!!??? ----",
    "word" * 60,
    "x̷̧̨y͓̽z̶̛",
)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spm")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_prefix=str(folder / "m"),
        vocab_size=760,
        model_type="unigram",
        byte_fallback=True,
        character_coverage=0.98,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    return folder / "m.model"


@pytest.fixture(scope="module")
def processor(model_path):
    return sentencepiece.SentencePieceProcessor(model_file=str(model_path))


@pytest.fixture(scope="module")
def folder(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_tokenizer(model_path, folder, 128)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_same_ids_in_every_script_and_unicode_form(exported, processor, form):
    for sentence in SENTENCES:
        text = unicodedata.normalize(form, sentence)
        assert exported(text).input_ids == [0, *processor.encode(text), 2], text


@pytest.mark.parametrize("text", HOSTILE)
def test_same_ids_on_hostile_text(exported, processor, text):
    assert exported(text).input_ids == [0, *processor.encode(text), 2]


def test_same_ids_on_random_mixtures(exported, processor):
    draw = random.Random(3)
    pieces = [word for text in (*SENTENCES, *HOSTILE) for word in (text[:3], text[3:9], text[-4:])]
    for _ in range(1500):
        text = "".join(draw.choice(pieces) for _ in range(draw.randint(1, 6)))
        assert exported(text, add_special_tokens=False).input_ids == processor.encode(text), ascii(text)


def test_decoding_gives_what_sentencepiece_gives(exported, processor):
    for text in (*SENTENCES, *HOSTILE):
        ids = processor.encode(text)
        assert exported.decode([0, *ids, 2], skip_special_tokens=True) == processor.decode(ids)


def test_rare_characters_become_bytes_not_unknown(exported):
    assert exported.unk_token_id not in exported("龘𪚥").input_ids


def test_special_tokens_have_our_ids(exported, processor):
    ids = [exported.bos_token_id, exported.pad_token_id, exported.eos_token_id, exported.unk_token_id]
    assert ids == [0, 1, 2, 3]
    assert exported.cls_token_id == 0
    assert exported.sep_token_id == 2
    assert exported.mask_token_id == processor.get_piece_size() == len(exported) - 1


def test_mask_takes_the_space_before_it_and_leaves_the_rest_of_the_sentence_alone(exported, processor):
    mask = exported.mask_token_id
    ids = exported("The quick <mask> fox, and <mask>.").input_ids
    assert ids == [
        0,
        *processor.encode("The quick"),
        mask,
        *processor.encode("fox, and"),
        mask,
        processor.piece_to_id("."),
        2,
    ]


def test_names_of_special_tokens_are_plain_text_when_asked(exported, processor):
    text = "a <s> b </s> <mask> <pad> <unk>"
    ids = exported(text, split_special_tokens=True, add_special_tokens=False).input_ids
    assert ids == processor.encode(text)


def test_pairs_look_like_pretraining_and_words_can_be_followed(exported, processor):
    a, b = processor.encode("The dog"), processor.encode("Die Straße")
    assert exported("The dog", "Die Straße").input_ids == [0, *a, 2, *b, 2]
    words = exported(["The", "quick", "Straße"], is_split_into_words=True)
    assert {word for word in words.word_ids() if word is not None} == {0, 1, 2}
    assert words.input_ids == exported("The quick Straße").input_ids


def test_truncation_and_saving_again(exported, tmp_path):
    from transformers import AutoTokenizer

    assert len(exported("word " * 500, truncation=True).input_ids) == 128
    exported.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert again("The <mask> Straße").input_ids == exported("The <mask> Straße").input_ids


def test_the_sentencepiece_model_is_copied_beside(folder, model_path):
    assert (folder / SENTENCEPIECE_FILE).read_bytes() == model_path.read_bytes()


def test_models_of_another_kind_are_refused(tmp_path):
    def train(name, **options):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4),
            model_prefix=str(tmp_path / name),
            vocab_size=330,
            minloglevel=2,
            character_coverage=0.98,
            **options,
        )
        return tmp_path / f"{name}.model"

    ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
    with pytest.raises(UserError, match="not a unigram model"):
        export_tokenizer(train("bpe", model_type="bpe", **ids), tmp_path / "out")
    with pytest.raises(UserError, match="begins with the pieces"):
        export_tokenizer(train("order", model_type="unigram"), tmp_path / "out")
    with pytest.raises(UserError, match="normalises text by 'nfkc_cf'"):
        export_tokenizer(train("lower", normalization_rule_name="nfkc_cf", **ids), tmp_path / "out")
    with pytest.raises(UserError, match="no SentencePiece model"):
        export_tokenizer(tmp_path / "absent.model", tmp_path / "out")
    (tmp_path / "noise.model").write_bytes(b"\xff\xfe not a protobuf")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        export_tokenizer(tmp_path / "noise.model", tmp_path / "out")
    assert not (tmp_path / "out").exists()
