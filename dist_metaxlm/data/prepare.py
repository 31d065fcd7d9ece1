"""From raw text to everything that training reads: corpus, held-out split, tokenizer, token store; what is there stays.

Each step writes into a hidden folder beside its place and is committed by a rename, so nothing is ever half there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_metaxlm.data import heldout, manifest, quickstart, readers
from dist_metaxlm.data.store import TokenStore
from dist_metaxlm.data.store_writer import Encoder, token_dtype, write_bitext, write_text
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokenizer_training import train_tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.schema import DataConfig, Recipe

Log = Callable[[str], None]
Files = dict[str, list[Path]]

STEPS = ("corpus", "heldout", "tokenizer", "store")


def is_prepared(recipe: Recipe) -> bool:
    """Whether everything is there, made with these settings. Errors: UserError if it was made with other settings."""
    directory = Path(recipe.data.directory)
    if not (directory / "store" / manifest.NAME).is_file():
        return False
    check_settings(recipe)
    return (directory / "tokenizer.model").is_file() and (directory / "heldout").is_dir()


def prepare(recipe: Recipe, log: Log, until: str = "store") -> None:
    """Make what is missing of STEPS, in that order, up to `until`; returns at once where nothing is.

    Two processes may call it at once: one works, the other waits. Errors: UserError for missing, empty or undecodable
    text, for a tokenizer of another size than `model.vocab_size`, and for data that other settings have made.
    """
    if is_prepared(recipe):
        return
    directory = Path(recipe.data.directory)
    if recipe.data.corpus == "files":
        _user_files(recipe.data)
    with _lock(directory, log):
        check_settings(recipe)
        for leftover in directory.glob(".making-*"):
            shutil.rmtree(leftover)
        _write_settings(recipe)
        for step in STEPS[:STEPS.index(until) + 1]:
            start = time.perf_counter()
            if _MAKERS[step](recipe, directory, log):
                log(f"{step} ready in {time.perf_counter() - start:.1f} s")


def verify(recipe: Recipe) -> int:
    """Check every prepared file of the store by size and checksum, and the tokenizer against it; returns how many files.

    Errors: UserError naming the first file that is not as it was written.
    """
    directory = Path(recipe.data.directory)
    store = TokenStore.open(directory / "store")
    check_settings(recipe)
    count = store.verify()
    for name in store.languages:
        store.text(name)
    for name in store.pairs:
        store.bitext(name)
    if Tokenizer.load(directory / "tokenizer.model").hash != store.tokenizer_hash:
        raise UserError(f"{directory / 'tokenizer.model'} is not the tokenizer that the token store was written with; "
                        f"delete {directory} and run launch/prepare.py again")
    return count + 1


def settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that the prepared data follow from, flat: recipe field -> value."""
    flat: dict[str, Any] = {"model.vocab_size": recipe.model.vocab_size}
    for name, value in recipe.data.model_dump(mode="json").items():
        if name == "tokenizer":
            flat |= {f"data.tokenizer.{field}": part for field, part in value.items()}
        elif name != "directory":
            flat[f"data.{name}"] = value
    return flat


def check_settings(recipe: Recipe) -> None:
    """Raise UserError naming the first field whose value differs from the one the data were made with."""
    path = Path(recipe.data.directory) / "settings.json"
    if not path.is_file():
        return
    made = json.loads(path.read_text(encoding="utf-8"))
    for field, value in settings(recipe).items():
        if made.get(field) != value:
            raise UserError(f"the data in {recipe.data.directory} were made with {field}={made.get(field)!r} and the recipe "
                            f"has {value!r}; set data.directory to another folder, or delete that folder")


def _write_settings(recipe: Recipe) -> None:
    path = Path(recipe.data.directory) / "settings.json"
    scratch = path.with_name(".making-settings.json")
    scratch.write_text(json.dumps(settings(recipe), indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


@contextmanager
def _lock(directory: Path, log: Log) -> Iterator[None]:
    """Hold the folder for this process; the kernel lets go of it however the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process prepares {directory}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _committed(place: Path) -> Iterator[Path]:
    """A hidden folder that takes the name `place` if the block ends well and is removed if not."""
    scratch = place.with_name(f".making-{place.name}")
    scratch.mkdir()
    try:
        yield scratch
        manifest.sync(scratch)
        os.rename(scratch, place)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _user_files(config: DataConfig) -> tuple[Files, Files]:
    """Text and bitext files of a recipe with `corpus: files`."""
    if not config.text:
        raise UserError("data.text names no language; give it files such as data.text: {en: [english.txt]}, "
                        "or set data.corpus: quickstart")
    return ({language: readers.expand(names, f"data.text.{language}") for language, names in config.text.items()},
            {pair: readers.expand(names, f"data.bitext.{pair}") for pair, names in config.bitext.items()})


def corpus_files(recipe: Recipe) -> tuple[Files, Files]:
    """Text files by language and bitext files by pair, sorted."""
    if recipe.data.corpus == "files":
        text, bitext = _user_files(recipe.data)
    else:
        text, bitext = quickstart.files(Path(recipe.data.directory) / "corpus")
    return dict(sorted(text.items())), dict(sorted(bitext.items()))


def _make_corpus(recipe: Recipe, directory: Path, log: Log) -> bool:
    place = directory / "corpus"
    if recipe.data.corpus == "files" or place.is_dir():
        return False
    with _committed(place) as folder:
        manifest.write(folder, quickstart.collect(folder, log))
    return True


def _make_heldout(recipe: Recipe, directory: Path, log: Log) -> bool:
    place = directory / "heldout"
    if place.is_dir():
        return False
    text, bitext = corpus_files(recipe)
    with _committed(place) as folder:
        found = heldout.write(folder, text, bitext, recipe.data.heldout_strings)
        manifest.write(folder, found)
    log(f"{found['strings']} source strings held out of {found['asked']} asked for")
    return True


def _make_tokenizer(recipe: Recipe, directory: Path, log: Log) -> bool:
    place, config = directory / "tokenizer.model", recipe.data.tokenizer
    if place.is_file():
        return False
    if config.path:
        _check_size(Tokenizer.load(config.path), recipe)
        scratch = place.with_name(".making-tokenizer.model")
        shutil.copyfile(config.path, scratch)
        os.replace(scratch, place)
        return True
    text, bitext = corpus_files(recipe)
    excluded = heldout.read_excluded(directory / "heldout")
    samples = {language: _Paragraphs(paths, excluded.get(language, set())) for language, paths in text.items()}
    report = train_tokenizer(samples, config, recipe.model.vocab_size, place)
    scratch = directory / ".making-tokenizer.json"
    scratch.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, directory / "tokenizer.json")
    return True


def _make_store(recipe: Recipe, directory: Path, log: Log) -> bool:
    place = directory / "store"
    if place.is_dir():
        return False
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    _check_size(tokenizer, recipe)
    text, bitext = corpus_files(recipe)
    with _committed(place) as folder, Encoder(tokenizer) as encoder:
        manifest.write(folder, {
            "tokenizer_hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size,
            "dtype": str(token_dtype(tokenizer.vocab_size).__name__), "settings": settings(recipe),
            **_write_store(folder, text, bitext, heldout.read_excluded(directory / "heldout"), encoder, recipe.data)})
    return True


def _write_store(folder: Path, text: Files, bitext: Files, excluded: heldout.Excluded, encoder: Encoder,
                 config: DataConfig) -> dict[str, Any]:
    about: dict[str, dict[str, Any]] = {"text": {}, "bitext": {}}
    for language, paths in text.items():
        dropped: dict[str, int] = {}
        kept = heldout.training_documents(readers.documents(paths), excluded.get(language, set()), dropped)
        about["text"][language] = {**write_text(folder / language, kept, encoder), "source": _names(paths),
                                   "dropped": dropped}
    for pair, paths in bitext.items():
        dropped = {}
        kept_pairs = heldout.training_pairs(readers.pairs(paths), pair, excluded, dropped)
        about["bitext"][pair] = {**write_bitext(folder / pair, kept_pairs, encoder, config.max_pair_tokens, dropped),
                                 "source": _names(paths), "dropped": dropped}
    return about


def _names(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"file": path.name, "bytes": path.stat().st_size} for path in paths]


def _check_size(tokenizer: Tokenizer, recipe: Recipe) -> None:
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise UserError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids with <mask> and model.vocab_size is "
                        f"{recipe.model.vocab_size}; set model.vocab_size to {tokenizer.vocab_size}")


class _Paragraphs:
    """Paragraphs of training text, as often as they are asked for."""

    def __init__(self, paths: list[Path], excluded: set[str]) -> None:
        self._paths, self._excluded = paths, excluded

    def __iter__(self) -> Iterator[str]:
        for document in readers.documents(self._paths):
            yield from (text for text in document if heldout.text_key(text) not in self._excluded)


_MAKERS: dict[str, Callable[[Recipe, Path, Log], bool]] = {
    "corpus": _make_corpus, "heldout": _make_heldout, "tokenizer": _make_tokenizer, "store": _make_store}
