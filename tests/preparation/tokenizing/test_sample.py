"""The tokenizer's sample: an even, repeatable share of the corpus; nothing beyond the sample is read."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dist_metaxlm.preparation.store import shards
from dist_metaxlm.preparation.tokenizing.sample import BLOCK, Sample, corpus_samples


@pytest.fixture
def text(tmp_path: Path) -> dict[str, list[Path]]:
    rng = random.Random(3)
    for number in range(2):
        lines = [f"{number} {n} " + "x" * rng.randrange(200) + "\n" * rng.choice([1, 2]) for n in range(3000)]
        (tmp_path / f"en.{number}.txt").write_text("".join(lines))
    return {"en": [tmp_path / "en.0.txt"], "en.more": [tmp_path / "en.1.txt"]}


def test_everything_once_where_the_quota_allows(text: dict[str, list[Path]]) -> None:
    drawn = list(Sample("en", text, {}, {}).draw(10**9))
    known = [line.strip() for paths in text.values() for line in paths[0].read_text().splitlines() if line.strip()]
    assert sorted(drawn) == sorted(known)


def test_a_share_is_even_and_repeatable_and_little_is_read(
    text: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = Sample("en", text, {}, {})
    read: list[int] = []
    text_of = shards._text
    monkeypatch.setattr(shards, "_text", lambda *a: read.append(1) or text_of(*a))
    quota = sample.size // 5
    drawn = list(sample.draw(quota))
    assert quota <= sum(map(len, drawn)) <= quota + 300
    assert len(read) <= 1.3 * quota / BLOCK + 2
    assert 0.3 < sum(line.startswith("0") for line in drawn) / len(drawn) < 0.7
    assert 0.3 < sum(int(line.split()[1]) < 1500 for line in drawn) / len(drawn) < 0.7
    assert drawn == list(Sample("en", text, {}, {}).draw(quota))


def test_held_out_text_is_left_out_and_translations_stand_in(text: dict[str, list[Path]], tmp_path: Path) -> None:
    (tmp_path / "en-de.tsv").write_text("a b\tdas ist\nc d\tund so\ne f\tgeheim nun\ng h\tnoch eins\n")
    excluded = {"de": {"geheim nun"}, "en": {"g h"}}
    samples = corpus_samples(text, {"en-de": [tmp_path / "en-de.tsv"]}, excluded)
    assert list(samples) == ["de", "en"]
    assert sorted(samples["de"].draw(10**6)) == ["das ist", "und so"]
    assert "a b" not in set(samples["en"].draw(10**9))
