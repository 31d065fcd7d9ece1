"""Rows 4 and 9: folders that transformers has changed; what tokenizers do to characters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from case import Case, refused

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "interop"))
from tiny_tokenizer import train_tokenizer as train_pieces
from tokenizer_texts import HOSTILE, SENTENCES

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.interop.folders import import_run
from dist_metaxlm.interop.tokenizers import export_tokenizer
from dist_metaxlm.preparation.tokenizing.training import TextSample, train_tokenizer
from dist_metaxlm.recipe.schema import TokenizerConfig

Change = Callable[[Any, Any], object]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 34,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


def imported(change: Change) -> Callable[[Path], str]:
    """What an import makes of an XLM-R folder whose (tokenizer, model) were changed: trained rows + other rows."""

    def run(folder: Path) -> str:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        export_tokenizer(train_pieces([*SENTENCES] * 4, folder, 740), folder / "plain")
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "plain"), local_files_only=True)
        ids = len(tokenizer)
        config = transformers.XLMRobertaConfig(vocab_size=ids, **SMALL)
        model = transformers.XLMRobertaForMaskedLM(config)
        change(tokenizer, model)
        tokenizer.save_pretrained(folder / "changed")
        (folder / "changed" / "sentencepiece.bpe.model").unlink(missing_ok=True)  # transformers 5 saves none for XLM-R
        model.save_pretrained(folder / "changed")
        taken = import_run(folder / "changed", folder / "imported")
        rows = json.loads((folder / "changed" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        return f"{'all' if taken.vocab_size == ids else taken.vocab_size} ids + {rows - taken.vocab_size} rows"

    return run


def add(tokens: list[str], special: bool = False) -> Change:
    def change(tokenizer: Any, model: Any) -> None:
        tokenizer.add_tokens(tokens, special_tokens=special)
        model.resize_token_embeddings(len(tokenizer))

    return change


def padded(tokenizer: Any, model: Any) -> None:
    """One more multiple of 64 than needed, so that the number of rows to spare is known."""
    model.resize_token_embeddings(len(tokenizer) + 64)


def new_mask(tokenizer: Any, model: Any) -> None:
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    model.resize_token_embeddings(len(tokenizer))


TELLING = (
    "می\u200cرود",
    "తెలు\u200cగు",
    "ක්\u200dෂ",
    "น้ำดื่ม",
    "½",
    "x²",
    "ＡＢＣ１２",
    "ﬁn",
    "①",
    "㎏",
    "™",
    "ﻻ",
    "ｱｲ",
    "a\u00adb",
    "e\u0301",
    "ᄒ\u1161ᆫ",
)
"""Words that a table of Unicode's compatibility forms, or of white space, may change."""
JOINED = {"می\u200cرود", "తెలు\u200cగు"}
FORMS = {"น้ำดื่ม", "½", "x²", "ＡＢＣ１２", "ﬁn", "①", "㎏", "™", "ﻻ", "ｱｲ", "e\u0301", "ᄒ\u1161ᆫ"}


@cache
def trained(name: str, folder: Path) -> Path:
    path = folder / f"{name}.model"
    text = TextSample((*TELLING, *SENTENCES, *(text for text in HOSTILE if text.strip())) * 4)
    train_tokenizer({"en": text}, TokenizerConfig(normalisation=name, character_coverage=0.98), 740, path)  # type: ignore[arg-type]
    return path


def changed(name: str) -> Callable[[Path], set[str]]:
    """Words that a normalisation changes."""

    def run(folder: Path) -> set[str]:
        tokenizer = Tokenizer.load(trained(name, folder))
        return {word for word in TELLING if tokenizer.decode(tokenizer.encode(word)).strip() != word}

    return run


def parity(name: str) -> Callable[[Path], int]:
    """Number of texts to which the exported tokenizer gives other ids."""

    def run(folder: Path) -> int:
        import transformers

        path = trained(name, folder)
        export_tokenizer(path, folder / "exported")
        theirs = transformers.AutoTokenizer.from_pretrained(str(folder / "exported"), local_files_only=True)
        ours = Tokenizer.load(path)
        texts = [*TELLING, " ".join(TELLING), *(f"the {word} is" for word in TELLING)]
        return sum(theirs(text, add_special_tokens=False).input_ids != ours.encode(text) for text in texts)

    return run


CASES = [
    Case(4, "as published", imported(lambda tokenizer, model: None), "all ids + 0 rows"),
    Case(4, "added tokens", imported(add(["<a>", "<b>"])), "all ids + 2 rows"),
    Case(4, "added words", imported(add(["Leuchtturm"])), "all ids + 1 rows"),
    Case(4, "an added special token", imported(add(["<x>"], special=True)), "all ids + 1 rows"),
    Case(4, "rows to spare", imported(padded), "all ids + 64 rows"),
    Case(
        4,
        "added tokens without rows",
        imported(lambda tokenizer, model: tokenizer.add_tokens(["<a>"])),
        refused("1 added token more", "resize_token_embeddings"),
    ),
    Case(4, "an added token as mask", imported(new_mask), refused("'[MASK]' as its mask_token")),
    Case(
        4,
        "fewer rows than ids",
        imported(lambda tokenizer, model: model.resize_token_embeddings(500)),
        refused("use tokenizer and weights of the same folder"),
    ),
    Case(9, "identity keeps every character", changed("identity"), set()),
    Case(9, "nfkc keeps joiners", changed("nfkc"), FORMS),
    Case(9, "nmt_nfkc makes spaces of joiners", changed("nmt_nfkc"), FORMS | JOINED),
    *(Case(9, f"{name}: other ids in the export", parity(name), 0) for name in ("identity", "nfkc", "nmt_nfkc")),
]
