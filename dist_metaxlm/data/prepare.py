"""From raw text to everything that training reads: corpus, held-out split, tokenizer, token store; what is there stays.

Each step writes into a hidden folder beside its place and is committed by a rename, so nothing is ever half there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dist_metaxlm.data import corpus, heldout, manifest, readers
from dist_metaxlm.data.settings import check_settings, settings, write_settings
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
        corpus.sources(recipe.data)
    with _lock(directory, log):
        check_settings(recipe)
        for leftover in directory.glob(".making-*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_settings(recipe)
        for step in STEPS[:STEPS.index(until) + 1]:
            start = time.perf_counter()
            if _MAKERS[step](recipe, directory, log):
                log(f"{step} ready in {time.perf_counter() - start:.1f} s")
        if (directory / "store").is_dir():
            _check_match(directory)


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
    _check_match(directory)
    return count + 1


def describe(recipe: Recipe) -> dict[str, Any]:
    """What is prepared: folder, and once the store is there languages, pairs, documents, tokens and bytes of text."""
    directory = Path(recipe.data.directory)
    if not (directory / "store").is_dir():
        return {"directory": str(directory)}
    content = TokenStore.open(directory / "store").manifest
    text, bitext = content["text"].values(), content["bitext"].values()
    note = content["corpus"].get("note")
    return {"directory": str(directory), **({"note": note} if note else {}), "languages": len(text),
            "language_pairs": len(bitext), "documents": sum(about["documents"] for about in text),
            "tokens": sum(about["tokens"] for about in text), "text_bytes": sum(about["bytes"] for about in text),
            "pairs": sum(about["pairs"] for about in bitext), "pair_tokens": sum(about["tokens"] for about in bitext)}


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


def corpus_files(recipe: Recipe) -> tuple[Files, Files]:
    """Text files by language and bitext files by pair, sorted."""
    return corpus.files(Path(recipe.data.directory) / "corpus")


def _make_corpus(recipe: Recipe, directory: Path, log: Log) -> bool:
    place = directory / "corpus"
    if place.is_dir():
        return False
    with _committed(place) as folder:
        manifest.write(folder, corpus.make(folder, recipe.data, log))
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
    samples = tokenizer_samples(text, bitext, excluded)
    report = train_tokenizer(samples, config, recipe.model.vocab_size, place)
    scratch = directory / ".making-tokenizer_report.json"
    scratch.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, directory / "tokenizer_report.json")
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
            "corpus": _about(directory / "corpus"), "heldout": _about(directory / "heldout"),
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


def _about(folder: Path) -> dict[str, Any]:
    """What a step wrote down of its work, without its list of files."""
    return {name: value for name, value in manifest.read(folder).items() if name not in ("format", "files")}


def _names(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"file": path.name, "bytes": path.stat().st_size} for path in paths]


def _check_size(tokenizer: Tokenizer, recipe: Recipe) -> None:
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise UserError(f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids with <mask> and model.vocab_size is "
                        f"{recipe.model.vocab_size}; set model.vocab_size to {tokenizer.vocab_size}")


def _check_match(directory: Path) -> None:
    known, found = TokenStore.open(directory / "store").tokenizer_hash, Tokenizer.load(directory / "tokenizer.model").hash
    if found != known:
        raise UserError(f"{directory / 'tokenizer.model'} is not the tokenizer that the token store was written with "
                        f"(SHA-256 {found[:12]}..., not {known[:12]}...); delete {directory / 'store'} and run "
                        "launch/prepare.py again")


class _Again:
    """An iterable that starts anew, from `make()`, as often as it is walked."""

    def __init__(self, make: Callable[[], Iterator[str]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[str]:
        return self._make()


def tokenizer_samples(text: Files, bitext: Files, excluded: heldout.Excluded) -> dict[str, Iterable[str]]:
    """Language -> its training paragraphs; for a language without text, its sides of the training pairs."""
    samples: dict[str, Iterable[str]] = {
        language: _Again(partial(_paragraphs, paths, excluded.get(language, set()))) for language, paths in text.items()}
    for language in sorted({code for pair in bitext for code in pair.split("-")} - text.keys()):
        samples[language] = _Again(partial(_sides, language, bitext, excluded))
    return samples


def _paragraphs(paths: list[Path], excluded: set[str]) -> Iterator[str]:
    for document in readers.documents(paths):
        yield from (paragraph for paragraph in document if heldout.text_key(paragraph) not in excluded)


def _sides(language: str, bitext: Files, excluded: heldout.Excluded) -> Iterator[str]:
    for pair, paths in bitext.items():
        if language in (codes := pair.split("-")):
            column = codes.index(language)
            yield from (sides[column] for sides in heldout.training_pairs(readers.pairs(paths), pair, excluded, {}))


_MAKERS: dict[str, Callable[[Recipe, Path, Log], bool]] = {
    "corpus": _make_corpus, "heldout": _make_heldout, "tokenizer": _make_tokenizer, "store": _make_store}
