"""Making a store: the same bytes whatever the workers and interruptions, and nothing done twice."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import Corpus, TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.store import build as store_making
from dist_metaxlm.preparation.store import encoding as shard_encoding
from dist_metaxlm.preparation.store import shards
from dist_metaxlm.preparation.store.build import make_store
from dist_metaxlm.preparation.tokenizing.training import TextSample, train_tokenizer
from dist_metaxlm.preparation.workers.communicator import Ranks
from dist_metaxlm.preparation.workers.progress import line, reporting
from dist_metaxlm.recipe.schema import TokenizerConfig

WORDS = [
    "river",
    "garden",
    "letter",
    "summer",
    "mountain",
    "evening",
    "question",
    "answer",
    "window",
    "paper",
    "number",
    "kitchen",
    "station",
    "bridge",
]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tokenizer, a held-out split and text of two languages in several shards."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    rng = random.Random(5)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 30))) for _ in range(500)]
    (tmp_path / "en.txt").write_text("".join(text + "\n" * rng.choice([1, 2]) for text in texts))
    (tmp_path / "de.txt").write_text("\n\n".join(text[::-1] for text in texts[:100]))
    (tmp_path / "en-de.tsv").write_text("".join(f"{text}\t{text[::-1]}\n" for text in texts[:200]))
    data = tmp_path / "data"
    (data / "heldout").mkdir(parents=True)
    (data / "heldout" / "excluded.json").write_text(json.dumps({"en": [texts[7], texts[400]]}))
    samples = {"en": TextSample(texts), "de": TextSample(text[::-1] for text in texts)}
    train_tokenizer(samples, TokenizerConfig(), 300, data / "tokenizer.model")
    return tmp_path


def make(folder: Path, workers: int = 1) -> dict[str, str]:
    files = {"de": [folder / "de.txt"], "en": [folder / "en.txt"]}, {"en-de": [folder / "en-de.tsv"]}
    make_store(folder / "data", *files, {"settings": {}}, 40, lambda _: None, workers, Ranks())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data" / "store").iterdir()}
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["heldout", "store", "tokenizer.model"]
    (folder / "data" / "store").rename(folder / f"store-{len(list(folder.glob('store-*')))}")
    return digests


def test_workers_change_nothing(corpus: Path) -> None:
    assert make(corpus, 1) == make(corpus, 2)
    store = TokenStore.open(corpus / "store-0")
    assert store.verify() == 6
    assert store.manifest["text"]["en"]["dropped"] == {"held-out paragraphs": 2}
    tokenizer = Tokenizer.load(corpus / "data" / "tokenizer.model")
    first = (corpus / "de.txt").read_text().split("\n\n")[42]
    german = store.text("de")
    begin, end = german.document_starts[42:44]
    assert german.tokens[begin:end].tolist() == [0, *tokenizer.encode(first), 2]


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_run_is_gone_on_with(corpus: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    whole = make(corpus)
    encode = shard_encoding._ShardEncoder.encode
    seen: list[int] = []

    def counted(self: shard_encoding._ShardEncoder, shard: shards.Shard) -> None:
        if len(seen) == after:
            (corpus / "data" / ".shards" / f"{shard.number:06d}.bin").write_bytes(b"half")
            raise KeyboardInterrupt
        seen.append(shard.number)
        encode(self, shard)

    with monkeypatch.context() as patch:
        patch.setattr(shard_encoding._ShardEncoder, "encode", counted)
        with pytest.raises(KeyboardInterrupt):
            make(corpus)
    assert sorted(path.name for path in (corpus / "data").iterdir()) == [".shards", "heldout", "tokenizer.model"]
    before = {path.name: path.stat().st_mtime_ns for path in (corpus / "data" / ".shards").glob("*.bin")}
    kept: list[int] = []
    intact = shard_encoding.intact

    def watched(place: Path, fingerprint: str) -> bool:
        answer = intact(place, fingerprint)
        if answer:
            kept.append(int(place.name))
        return answer

    monkeypatch.setattr(shard_encoding, "intact", watched)
    assert make(corpus) == whole
    assert kept == seen
    assert len(before) == after + 1


@pytest.mark.parametrize("damage", ["flip", "cut", "report", "text"])
def test_a_damaged_or_outdated_shard_is_made_again(corpus: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    whole = make(corpus)
    with monkeypatch.context() as patch:
        patch.setattr(store_making, "join_shards", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            make(corpus)
    place = corpus / "data" / ".shards" / "000001"
    raw = bytearray(place.with_suffix(".bin").read_bytes())
    raw[10] ^= 1
    if damage == "flip":
        place.with_suffix(".bin").write_bytes(raw)
    elif damage == "cut":
        place.with_suffix(".len").write_bytes(place.with_suffix(".len").read_bytes()[:-4])
    elif damage == "report":
        place.with_suffix(".json").write_text("{")
    else:
        text = (corpus / "de.txt").read_text().replace("r", "s")
        (corpus / "de.txt").write_text(text)
        for old in (corpus / "data").glob(".shards"):
            assert old.is_dir()
        changed = make(corpus)
        assert changed["de.bin"] != whole["de.bin"]
        assert changed["en.bin"] == whole["en.bin"]
        return
    assert make(corpus) == whole


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_join_is_the_one_of_megatrons_builder(corpus: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    make(corpus)
    store = corpus / "store-0"
    for name, sequences in (("en", 1), ("en-de", 2)):
        ours = Corpus(store / name, sequences)
        halves = len(ours) // 2
        for number, part in enumerate((range(halves), range(halves, len(ours)))):
            builder = IndexedDatasetBuilder(str(corpus / f"{number}.bin"), dtype=np.uint16)
            for document in part:
                begin, end = ours.document_starts[document : document + 2]
                lengths = (
                    [end - begin]
                    if sequences == 1
                    else [ours.second_starts[document] - begin, end - ours.second_starts[document]]
                )
                builder.add_document(ours.tokens[begin:end], lengths)
            builder.finalize(str(corpus / f"{number}.idx"))
        joined = IndexedDatasetBuilder(str(corpus / "joined.bin"), dtype=np.uint16)
        for number in range(2):
            joined.add_index(str(corpus / str(number)))
        joined.finalize(str(corpus / "joined.idx"))
        for end in ("bin", "idx"):
            assert (corpus / f"joined.{end}").read_bytes() == (store / f"{name}.{end}").read_bytes()


def test_bad_text_is_named_by_any_worker(corpus: Path) -> None:
    with (corpus / "en.txt").open("ab") as file:
        file.write(b"bad \xff byte\n")
    for workers in (1, 2):
        with pytest.raises(UserError, match=r"en\.txt, line \d+, byte 5 \(0xFF\) is not UTF-8"):
            make(corpus, workers)
    (corpus / "en.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"en\.txt holds no documents, only blank lines"):
        make(corpus)


def test_progress_tells_speed_and_time_left() -> None:
    assert line(6_000_000, 10_000_000, 2_000_000, 2.0) == "6.0 of 10.0 MB, 2.0 MB/s, 2 s left"
    assert line(0, 10_000_000, 0, 2.0) == "0.0 of 10.0 MB, 0.0 MB/s"
    said: list[str] = []
    with reporting(lambda: 5_000_000, 10_000_000, said.append):
        pass
    assert said == ["5.0 MB of 10.0 MB are finished from an earlier run"]


CHILD = """
import sys
from pathlib import Path
from dist_metaxlm.preparation.store import shards
from dist_metaxlm.preparation.workers.communicator import Ranks
from dist_metaxlm.preparation.store.build import make_store

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    shards.SHARD_BYTES = 200
    files = {"de": [folder / "de.txt"], "en": [folder / "en.txt"]}, {"en-de": [folder / "en-de.tsv"]}
    make_store(folder / "data", *files, {"settings": {}}, 40, print, 2, Ranks())
"""


def test_after_a_real_kill_no_worker_lives_on_and_the_rest_is_made(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    whole = make(corpus)
    (corpus / "child.py").write_text(CHILD)
    process = subprocess.Popen([sys.executable, str(corpus / "child.py"), str(corpus)], start_new_session=True)
    folder = corpus / "data" / ".shards"
    while len(list(folder.glob("*.json"))) < 3:
        assert process.poll() is None, "it was through before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(process.pid)
    done = len(list(folder.glob("0*.json")))
    assert (
        3
        <= done
        < len(shards.plan({"de": [corpus / "de.txt"], "en": [corpus / "en.txt"]}, {"en-de": [corpus / "en-de.tsv"]}))
    )
    for left in (corpus / "data").glob(".making-*"):
        left.rmdir()
    assert make(corpus) == whole


def _alive(session: int) -> list[str]:
    """Command lines of the processes of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((status.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found
