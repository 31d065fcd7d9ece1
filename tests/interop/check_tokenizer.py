"""`check_tokenizer.py PATH... --output FILE`: equal ids on real text, in every direction, script by script.

A PATH is a .txt or .tsv file (plain, .gz, .bz2 or .xz) or a folder of them: a sentence a line or several by tabs. On their
text two tokenizers are trained, ours and one of XLM-R's kind (SentencePiece's own order of pieces, no byte fallback).
Compared on each sentence:
- export: our model's ids and those that `AutoTokenizer` gives in the exported folder; the folder imported again is
  the same model, byte for byte;
- import: the ids of transformers' XLMRobertaTokenizer and of the model imported from its sentencepiece.bpe.model;
- import_json: the same from the tokenizer.json that transformers 5 writes instead;
- back: the ids of XLMRobertaTokenizer and of the exported folder of the model imported from it.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from dist_metaxlm.interop.tokenizer_import import import_tokenizer
from dist_metaxlm.interop.tokenizers import SENTENCEPIECE_FILE, SPECIAL_PIECES, export_tokenizer
from dist_metaxlm.recipe.schema import ModelConfig

OPEN = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
KANA, HAN = ("HIRAGANA", "KATAKANA"), "CJK"
DIRECTIONS = ("export", "import", "import_json", "back")
Encode = Callable[[str], list[int]]


def script_of(sentence: str) -> str | None:
    """The script of most letters, by the first word of their Unicode names; Japanese is KANA."""
    counts = Counter(
        unicodedata.name(letter, "?").split()[0] for letter in unicodedata.normalize("NFKC", sentence) if letter.isalpha()
    )
    counts["KANA"] = sum(counts.pop(kana, 0) for kana in KANA)
    if counts["KANA"] and counts["KANA"] + counts[HAN] > sum(counts.values()) / 2:
        return "KANA"
    script, count = max(counts.items(), key=lambda item: item[1])
    return script if count else None


def sentences_by_script(paths: Iterable[Path], limit: int) -> dict[str, list[str]]:
    """Script -> different sentences of the files, at most `limit`, taken evenly from what there is."""
    found: dict[str, dict[str, None]] = {}
    files = [file for given in paths for file in ([given] if given.is_file() else sorted(given.rglob("*")))]
    for path in files:
        if path.is_file() and {".txt", ".tsv"} & set(path.suffixes):
            with OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
                for sentence in (part for line in lines for part in line.rstrip("\n").split("\t")):
                    script = script_of(sentence)
                    if script:
                        found.setdefault(script, {})[sentence] = None
    return {script: list(texts)[:: max(1, -(-len(texts) // limit))] for script, texts in sorted(found.items())}


def train(texts: Iterable[str], path: Path, pieces: int, **options: Any) -> Path:
    """A SentencePiece unigram model, written to `path`."""
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=pieces,
            hard_vocab_limit=False,
            num_threads=1,
            character_coverage=0.9995,
            minloglevel=2,
            **options,
        )
    return path


def folders(texts: list[str], pieces: int, place: Path) -> dict[str, tuple[Encode, Encode]]:
    """Direction -> (ids that Hugging Face gives, ids after our conversion)."""
    from transformers import AutoTokenizer, XLMRobertaTokenizer

    ours, exported, theirs, saved = (place / name for name in ("ours.model", "exported", "theirs", "saved"))
    train(texts, ours, pieces, byte_fallback=True, bos_id=0, pad_id=1, eos_id=2, unk_id=3)
    export_tokenizer(ours, exported, 512)
    theirs.mkdir()
    train(texts, theirs / SENTENCEPIECE_FILE, pieces)
    xlmr = XLMRobertaTokenizer.from_pretrained(str(theirs), local_files_only=True)
    xlmr.save_pretrained(str(saved))
    if imported_model(exported) != ours.read_bytes():
        raise AssertionError("an exported folder does not come back as the same SentencePiece model")
    fast = AutoTokenizer.from_pretrained(str(exported), local_files_only=True)
    (place / "again.model").write_bytes(imported_model(theirs))
    export_tokenizer(place / "again.model", place / "again", 512)
    again = AutoTokenizer.from_pretrained(str(place / "again"), local_files_only=True)
    return {
        "export": (whole_text(fast), with_ends(ours.read_bytes())),
        "import": (whole_text(xlmr), with_ends(imported_model(theirs))),
        "import_json": (whole_text(xlmr), with_ends(imported_model(saved))),
        "back": (whole_text(xlmr), whole_text(again)),
    }


def whole_text(tokenizer: Any) -> Encode:
    """Ids of a Hugging Face tokenizer, special tokens included."""
    return lambda text: list(tokenizer(text).input_ids)


def with_ends(model: bytes) -> Encode:
    """Ids of a SentencePiece model between `<s>` and `</s>`."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda text: [0, *processor.encode(text), 2]


def imported_model(folder: Path) -> bytes:
    """The SentencePiece model of a Hugging Face folder, whatever the size of its vocabulary."""
    if (folder / SENTENCEPIECE_FILE).is_file():
        file = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE_FILE))
        # XLM-R's file has no <pad>; both lack <mask>.
        size = file.get_piece_size() + (1 if file.id_to_piece(0) == SPECIAL_PIECES[0] else 2)
    else:
        size = len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    model = import_tokenizer(folder, ModelConfig(layers=1, hidden=8, heads=1, ffn=8, vocab_size=size))
    if model is None:
        raise AssertionError(f"{folder} has no SentencePiece tokenizer")
    return model


def compare(texts: dict[str, list[str]], directions: dict[str, tuple[Encode, Encode]]) -> dict[str, Any]:
    """Script -> sentences and how many have other ids, by direction; and the first ten that differ."""
    table: dict[str, Any] = {}
    examples: list[dict[str, str]] = []
    for script, sentences in texts.items():
        table[script] = {"sentences": len(sentences)}
        for direction, (theirs, ours) in directions.items():
            differing = [text for text in sentences if theirs(text) != ours(text)]
            table[script][direction] = len(differing)
            examples += [{"direction": direction, "script": script, "text": text} for text in differing]
    return {"other_ids": table, "examples": examples[:10]}


def main() -> int:
    from dist_metaxlm.training.checkpointing.manifest import write_json
    from dist_metaxlm.training.run.environment import environment

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="text files or folders of them")
    parser.add_argument("--output", required=True, help="JSON file for the figures")
    parser.add_argument("--limit", type=int, default=1000, help="sentences compared of each script")
    parser.add_argument("--pieces", type=int, default=16000, help="pieces of each tokenizer")
    parser.add_argument("--source", default="files given", help="what the text is, for the record")
    arguments = parser.parse_args()
    texts = sentences_by_script(arguments.paths, arguments.limit)
    with tempfile.TemporaryDirectory() as place:
        everything = [text for sentences in texts.values() for text in sentences]
        result = compare(texts, folders(everything, arguments.pieces, Path(place)))
    total = {key: sum(row[key] for row in result["other_ids"].values()) for key in ("sentences", *DIRECTIONS)}
    command = f"python tests/interop/check_tokenizer.py PATH... --pieces {arguments.pieces} --limit {arguments.limit}"
    surroundings = environment()
    del surroundings["command"]  # as typed here, with this machine's paths
    write_json(
        Path(arguments.output),
        {
            "source": arguments.source,
            "command": command,
            "scripts": len(texts),
            "total": total,
            **result,
            "environment": surroundings,
        },
    )
    print(json.dumps({"scripts": len(texts), **total, **result}, ensure_ascii=False, indent=1))
    return 1 if total["export"] else 0


if __name__ == "__main__":
    sys.exit(main())
