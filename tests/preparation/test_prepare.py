"""Preparing data: everything once, nothing twice, nothing half, and settings that must match."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.prepare import describe, is_prepared, prepare, verify
from dist_metaxlm.preparation.store import build as store_making
from dist_metaxlm.recipe.schema import DataConfig, LearningRate, MaskedLM, ModelConfig, PhaseConfig, Recipe

VOCAB = 400


def make_recipe(folder: Path, vocab_size: int = VOCAB, **data) -> Recipe:
    fields = {
        "directory": str(folder / "data"),
        "text": {"en": [str(folder / "en.txt")]},
        "bitext": {"en-de": [str(folder / "en-de.tsv")]},
        "heldout_strings": 10,
        **data,
    }
    phase = PhaseConfig(
        steps=1, sequence_length=16, objectives=[MaskedLM(batch_tokens=16)], learning_rate=LearningRate(peak=1e-3)
    )
    return Recipe(
        name="tiny",
        model=ModelConfig(layers=1, hidden=8, heads=1, ffn=8, vocab_size=vocab_size),
        data=DataConfig(**fields),
        phases={"meta": phase},
    )


def made_up(seed: int, letters: str) -> list[str]:
    rng = random.Random(seed)
    stems = ["".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(120)]
    return [" ".join(rng.choices(stems, k=6)) for _ in range(200)]


def write_sources(folder: Path) -> None:
    english, german = made_up(1, "abcdefghijklmnop"), made_up(2, "äöüßabcdefghijkl")
    (folder / "en.txt").write_text("".join(f"A day has {n} hours.\n{text}\n\n" for n, text in enumerate(english)))
    (folder / "en-de.tsv").write_text("".join(f"{left}\t{right}\n" for left, right in zip(english, german, strict=True)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def silent(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_metaxlm.preparation.store.build.available_cores", lambda: 1)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_sources(tmp_path)
    return make_recipe(tmp_path)


def test_all_steps_then_nothing_more(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    assert not is_prepared(recipe)
    prepare(recipe, said.append)
    assert is_prepared(recipe)
    assert [line.split()[0] for line in said if "ready" in line] == ["corpus", "heldout", "tokenizer", "store"]
    before = contents(tmp_path / "data")
    assert sorted(before) == [
        ".lock",
        "corpus/bitext/en-de.tsv",
        "corpus/manifest.json",
        "corpus/text/en.txt",
        "heldout/excluded.json",
        "heldout/manifest.json",
        "heldout/strings.jsonl",
        "settings.json",
        "store/en-de.bin",
        "store/en-de.idx",
        "store/en.bin",
        "store/en.idx",
        "store/manifest.json",
        "tokenizer.model",
        "tokenizer_report.json",
    ]
    said.clear()
    prepare(recipe, said.append)
    assert said == []
    assert contents(tmp_path / "data") == before
    assert verify(recipe) == 9


def test_the_store_holds_no_held_out_string(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent)
    data = tmp_path / "data"
    rows = [json.loads(line) for line in (data / "heldout" / "strings.jsonl").read_text().splitlines()]
    store, tokenizer = TokenStore.open(data / "store"), Tokenizer.load(data / "tokenizer.model")
    assert len(rows) == 10
    assert store.tokenizer_hash == tokenizer.hash
    assert store.manifest["bitext"]["en-de"]["pairs"] == 190
    assert store.manifest["bitext"]["en-de"]["dropped"] == {"held-out pairs": 10}
    assert store.manifest["heldout"]["strings"] == 10
    assert describe(recipe)["left_out"] == {"held-out paragraphs": 10, "held-out pairs": 10}
    assert store.manifest["corpus"]["bitext"]["en-de"]["kept"] == {"pairs": 200, "bytes": 13484}
    text = tokenizer.decode(store.text("en").tokens) + tokenizer.decode(store.bitext("en-de").tokens)
    assert "A day has 7 hours." in text
    assert not any(f"{row['en']} " in text or f"{row['de']} " in text for row in rows)


def test_steps_in_turn_end_in_the_same_files(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent)
    whole = contents(tmp_path / "data")
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"directory": str(tmp_path / "steps")})})
    prepare(other, silent, until="tokenizer")
    assert not (tmp_path / "steps" / "store").exists()
    assert not is_prepared(other)
    prepare(other, silent)
    assert contents(tmp_path / "steps") == whole


def test_later_steps_read_the_corpus_and_not_the_sources(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent, until="corpus")
    for name in ("en.txt", "en-de.tsv"):
        (tmp_path / name).unlink()
    prepare(recipe, silent)
    assert is_prepared(recipe)


def test_a_store_without_a_manifest_is_refused_before_the_work(recipe: Recipe, tmp_path: Path) -> None:
    place = tmp_path / "data" / "store"
    place.mkdir(parents=True)
    with pytest.raises(UserError, match=r"store holds no prepared data \(manifest\.json is missing\); move it away and run"):
        prepare(recipe, silent)
    assert not (tmp_path / "data" / "corpus").exists()
    place.rename(tmp_path / "away")
    prepare(recipe, silent)


def test_another_language_later_keeps_tokenizer_split_and_store(recipe: Recipe, tmp_path: Path) -> None:
    """The way that docs/store.md shows."""
    prepare(recipe, silent)
    (tmp_path / "it.txt").write_text("\n\n".join(made_up(3, "aeioulmnrst")))
    text = {name: [str(tmp_path / f"{name}.txt")] for name in ("en", "it")}
    with pytest.raises(UserError, match=r"data\.text\.it=None.*for a trained model data\.tokenizer") as caught:
        prepare(make_recipe(tmp_path, text=text), silent)
    model = str(caught.value).split("data.tokenizer.path to ")[1].split(", or")[0]
    shutil.copytree(tmp_path / "data" / "heldout", tmp_path / "more" / "heldout")
    more = make_recipe(tmp_path, text=text, directory=str(tmp_path / "more"), tokenizer={"path": model})
    prepare(more, silent)
    for name in ("heldout/strings.jsonl", "tokenizer.model", "store/en.bin", "store/en-de.bin"):
        assert (tmp_path / "more" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    assert describe(more)["languages"] == 2


def test_a_store_of_other_tools_is_taken_as_the_page_says(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent)
    mine = tmp_path / "data" / "mine"
    (mine / "store").mkdir(parents=True)
    shutil.copy(tmp_path / "data" / "tokenizer.model", mine)
    for end in ("bin", "idx"):
        shutil.copy(tmp_path / "data" / "store" / f"en.{end}", mine / "store")
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    taken = make_recipe(tmp_path, directory=str(mine), text={}, bitext={})
    prepare(taken, silent)
    assert verify(taken) == 3
    assert describe(taken)["tokens"] == describe(recipe)["tokens"]


def test_data_from_before_the_field_are_those_of_its_default(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent)
    assert describe(recipe)["normalisation"] == "nmt_nfkc"
    path = tmp_path / "data" / "settings.json"
    made = json.loads(path.read_text())
    assert made.pop("data.tokenizer.normalisation") == "nmt_nfkc"
    path.write_text(json.dumps(made))
    assert is_prepared(recipe)
    other = make_recipe(tmp_path, tokenizer={"normalisation": "identity"})
    with pytest.raises(UserError, match=r"normalisation='nmt_nfkc' and the recipe has 'identity'"):
        is_prepared(other)


@pytest.mark.parametrize(("name", "step"), [("corpus/text/en.txt", "corpus"), ("heldout/excluded.json", "heldout")])
def test_what_a_step_reads_is_what_the_one_before_wrote(recipe: Recipe, tmp_path: Path, name: str, step: str) -> None:
    prepare(recipe, silent, until="tokenizer")
    (tmp_path / "data" / name).write_text("[]")
    with pytest.raises(UserError, match=rf"{name} has 2 bytes instead of \d+; delete \S+{step} and run") as caught:
        prepare(recipe, silent)
    shutil.rmtree(str(caught.value).split("delete ")[1].split(" and")[0])
    prepare(recipe, silent)
    assert verify(recipe) == 9


def test_a_tokenizer_that_is_damaged_is_made_again_as_it_says(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent)
    model = tmp_path / "data" / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:99])
    with pytest.raises(UserError, match=r"or delete it if metaxlm prepare has written it, and run that again"):
        prepare(recipe, silent)
    model.unlink()
    prepare(recipe, silent)
    assert verify(recipe) == 9


def test_only_the_language_that_differs_is_named(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent, until="corpus")
    text = {name: [str(tmp_path / "en.txt")] for name in ("en", "it")}
    with pytest.raises(UserError, match=r"made with data\.text\.it=None and the recipe has \{.*en\.txt.*\}; set"):
        prepare(make_recipe(tmp_path, text=text), silent)
    with pytest.raises(UserError, match=r"data\.text\.en\.weight=1\.0 and the recipe has 2\.0; set"):
        prepare(make_recipe(tmp_path, text={"en": {"": {"files": text["en"], "weight": 2.0}}}), silent)


@pytest.mark.parametrize(
    ("changed", "said", "stale"),
    [
        ({"heldout_strings": 11}, r"data\.heldout_strings=10 and the recipe has 11", r"heldout, tokenizer\.model, store"),
        ({"max_pair_tokens": 64}, r"data\.max_pair_tokens=128 and the recipe has 64", "store"),
        ({"tokenizer": {"alpha": 0.7}}, r"data\.tokenizer\.alpha=0\.3 and the recipe has 0\.7", r"tokenizer\.model, store"),
        ({"vocab_size": 410}, r"model\.vocab_size=400 and the recipe has 410", r"tokenizer\.model, store"),
    ],
)
def test_data_of_other_settings_are_refused_by_field(
    recipe: Recipe, tmp_path: Path, changed: dict, said: str, stale: str
) -> None:
    prepare(recipe, silent)
    with pytest.raises(UserError, match=said + "; set data.directory to another folder, or delete " + stale) as caught:
        prepare(make_recipe(tmp_path, **changed), silent)
    for name in str(caught.value).split("or delete ")[1].split(" there")[0].split(", "):
        path = tmp_path / "data" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    prepare(make_recipe(tmp_path, **changed), silent)


def test_what_is_not_made_yet_may_still_change(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size 9000 is more than this text can fill"):
        prepare(make_recipe(tmp_path, vocab_size=9000), silent)
    prepare(recipe, silent)
    assert json.loads((tmp_path / "data" / "settings.json").read_text())["model.vocab_size"] == VOCAB
    with pytest.raises(UserError, match=r"data\.text\.en=.* and the recipe has None; .*, or delete that folder"):
        prepare(make_recipe(tmp_path, text={"de": [str(tmp_path / "en.txt")]}), silent)
    (tmp_path / "data" / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json is damaged, so the settings of the data in"):
        prepare(recipe, silent)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"text": {}}, r"data\.text names no language"),
        ({"text": {"en": ["nowhere.txt"]}}, r"data\.text\.en: 'nowhere\.txt' names no file"),
        ({"text": {"../en": ["nowhere.txt"]}}, r"language code '\.\./en'"),
        ({"bitext": {"en-de": ["nowhere.tsv"]}}, r"data\.bitext\.en-de: 'nowhere\.tsv' names no file"),
    ],
)
def test_bad_text_is_refused_before_anything_is_written(recipe: Recipe, tmp_path: Path, data: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(make_recipe(tmp_path, **data), silent)
    assert not (tmp_path / "data").exists()


def test_text_that_is_not_utf8_leaves_no_step_half_done(recipe: Recipe, tmp_path: Path) -> None:
    with (tmp_path / "en.txt").open("ab") as file:
        file.write(b"bad \xff byte\n")
    prepare_text = make_recipe(tmp_path)
    with pytest.raises(UserError, match=r"en\.txt, line \d+, byte 5 \(0xFF\) is not UTF-8"):
        prepare(prepare_text, silent)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".lock", "settings.json"]


def test_a_full_disk_leaves_nothing_under_a_final_name(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(recipe, silent, until="tokenizer")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_making, "join_shards", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(recipe, silent)
    assert not (tmp_path / "data" / "store").exists()
    assert not list((tmp_path / "data").glob(".making-*"))
    prepare(recipe, silent)
    assert verify(recipe) == 9


def test_what_a_killed_run_left_is_cleared(recipe: Recipe, tmp_path: Path) -> None:
    left = tmp_path / "data" / ".making-store"
    left.mkdir(parents=True)
    (left / "en.bin").write_bytes(b"half")
    (tmp_path / "data" / ".making-settings.json").write_text("{")
    prepare(recipe, silent)
    assert not list((tmp_path / "data").glob(".making-*"))


def test_an_existing_tokenizer_is_taken_if_it_fits(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent, until="tokenizer")
    (tmp_path / "data" / "tokenizer.model").rename(tmp_path / "own.model")
    own = {"path": str(tmp_path / "own.model")}
    taken = make_recipe(tmp_path, directory=str(tmp_path / "own"), tokenizer=own)
    prepare(taken, silent)
    assert TokenStore.open(tmp_path / "own" / "store").tokenizer_hash == Tokenizer.load(own["path"]).hash
    with pytest.raises(UserError, match=r"own\.model has 400 ids .* set model\.vocab_size to 400"):
        prepare(make_recipe(tmp_path, vocab_size=500, directory=str(tmp_path / "b"), tokenizer=own), silent)
    assert not (tmp_path / "b").exists(), "before hours of cleaning"


def test_a_tokenizer_put_in_place_of_the_stores_own_is_noticed(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent)
    model = tmp_path / "data" / "tokenizer.model"
    other = make_recipe(tmp_path, directory=str(tmp_path / "b"), bitext={})
    prepare(other, silent, until="tokenizer")
    model.write_bytes((tmp_path / "b" / "tokenizer.model").read_bytes())
    with pytest.raises(UserError, match=r"tokenizer\.model is not the tokenizer that the token store was written with"):
        verify(recipe)


def test_a_language_with_translations_only_is_in_the_tokenizers_mix(recipe: Recipe, tmp_path: Path) -> None:
    prepare(recipe, silent, until="tokenizer")
    report = json.loads((tmp_path / "data" / "tokenizer_report.json").read_text())
    assert set(report) == {"en", "de"}


def test_no_workers_are_the_users_mistake(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="--workers 0 is less than 1"):
        prepare(recipe, silent, workers=0)


def test_weights_of_named_sources_reach_the_store_and_the_mix(recipe: Recipe, tmp_path: Path) -> None:
    text = {
        "en": {"one": {"files": [str(tmp_path / "en.txt")], "weight": 3.0}, "two": {"files": [str(tmp_path / "en2.txt")]}}
    }
    (tmp_path / "en2.txt").write_text("".join(f"{line}\n\n" for line in made_up(5, "abcdefghijklmnop")))
    weighted = make_recipe(tmp_path, text=text)
    prepare(weighted, silent)
    entries = TokenStore.open(tmp_path / "data" / "store").manifest["text"]
    assert {name: (about["language"], about["weight"]) for name, about in entries.items()} == {
        "en.one": ("en", 3.0),
        "en.two": ("en", 1.0),
    }
    assert describe(weighted)["languages"] == 1
