"""From raw text to training data: corpus, held-out split, tokenizer, token store; existing results are kept.

Each step writes into a hidden folder next to its target and is committed by a rename, so no result is ever incomplete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dist_metaxlm.data.sources import text_sources
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens import manifest
from dist_metaxlm.data.tokens.store import CorpusEntry, TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.corpus import corpus, heldout
from dist_metaxlm.preparation.settings import check_settings, settings, write_settings
from dist_metaxlm.preparation.store.build import make_store
from dist_metaxlm.preparation.tokenizing.sample import corpus_samples
from dist_metaxlm.preparation.tokenizing.training import draw, poorly_served, report, train_tokenizer
from dist_metaxlm.preparation.workers.communicator import Ranks
from dist_metaxlm.preparation.workers.progress import Log
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.storage.atomic import sync_tree

Files = dict[str, list[Path]]

Count = Literal["documents", "pairs", "tokens", "bytes"]
"""A count of a corpus in the store's manifest."""
REPORT = "tokenizer_report.json"
STEPS = ("corpus", "heldout", "tokenizer", "store")


def is_prepared(recipe: Recipe) -> bool:
    """Whether all data exist with these settings. Errors: UserError if they were made with other settings."""
    directory = Path(recipe.data.directory)
    if not (directory / "store" / manifest.NAME).is_file():
        return False
    check_settings(recipe)
    return (directory / "tokenizer.model").is_file() and (directory / "heldout").is_dir()


def prepare(recipe: Recipe, log: Log, until: str = "store", workers: int | None = None, ranks: Ranks | None = None) -> None:
    """Run the missing steps of STEPS in order, up to `until`; returns at once if none is missing.

    Two processes may call it at once: one works, the other waits. With `ranks`, all ranks call it and write the store
    together. `workers` is the number of processes of each rank for the store (default: its share of the machine's cores)
    and of the first rank for cleaning (default: one for little text, else one a core).
    Errors: UserError for missing, empty or undecodable text, for a tokenizer whose size is not `model.vocab_size`, and
    for data made with other settings.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} is less than 1; give at least 1, or leave it out for one a core")
    ranks = ranks or Ranks()
    directory = Path(recipe.data.directory)
    with ExitStack() as stack:
        with ranks.together():
            missing = ranks.first and not is_prepared(recipe)
            if missing:
                for folder in (directory / "corpus", directory / "heldout", directory / "store"):
                    if folder.is_dir():  # read by the missing steps, or instead of their results
                        manifest.check_sizes(folder, manifest.read(folder))
                if recipe.data.corpus == "files" and not (directory / "corpus").is_dir():
                    corpus.sources(recipe.data)
                if recipe.data.tokenizer.path and not (directory / "tokenizer.model").is_file():
                    _check_size(Tokenizer.load(recipe.data.tokenizer.path), recipe)
                stack.enter_context(_lock(directory, log))
                _first_steps(recipe, directory, log, until, workers)
                missing = until == "store" and not (directory / "store").is_dir()
        if ranks.share(missing):
            start = time.perf_counter()
            _make_store(recipe, directory, log, workers, ranks)
            if ranks.first:
                log(f"store ready in {time.perf_counter() - start:.1f} s")
        with ranks.together():
            if ranks.first and until == "store":
                _check_match(directory)


def _first_steps(recipe: Recipe, directory: Path, log: Log, until: str, workers: int | None) -> None:
    check_settings(recipe)
    for leftover in directory.glob(".making-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    write_settings(recipe)
    makers: dict[str, Callable[[Recipe, Path, Log], bool]] = {
        "corpus": partial(_make_corpus, workers=workers),
        "heldout": _make_heldout,
        "tokenizer": _make_tokenizer,
    }
    for step, make in makers.items():
        start = time.perf_counter()
        if make(recipe, directory, log):
            log(f"{step} ready in {time.perf_counter() - start:.1f} s")
        if step == until:
            return


def verify(recipe: Recipe) -> int:
    """Check every prepared file by size and checksums, index against tokens, and the tokenizer; returns the number of files.

    Errors: UserError naming the first changed file, and the range of bytes.
    """
    directory = Path(recipe.data.directory)
    store = TokenStore.open(directory / "store")
    check_settings(recipe)
    count = store.verify()
    count += sum(manifest.verify(directory / step) for step in ("corpus", "heldout") if (directory / step).is_dir())
    _check_match(directory)
    return count + 1


def describe(recipe: Recipe) -> dict[str, object]:
    """Summary of the prepared data: folder, the tokenizer's normalisation, and if the store exists languages, pairs,
    documents, tokens, bytes of text, and numbers of omitted paragraphs and pairs of the corpus by reason."""
    directory = Path(recipe.data.directory)
    model = directory / "tokenizer.model"
    facts: dict[str, object] = {"directory": str(directory)}
    facts |= {"normalisation": Tokenizer.load(model).normalisation} if model.is_file() else {}
    if not (directory / "store").is_dir():
        return facts
    content = TokenStore.open(directory / "store").manifest
    text, bitext = content["text"].values(), content["bitext"].values()
    note = dict(content.get("corpus") or {}).get("note")
    left_out: Counter[str] = sum((Counter(about.get("dropped", {})) for about in (*text, *bitext)), Counter())
    return {
        **facts,
        **({"note": note} if note else {}),
        "languages": len(text_sources(content["text"])),
        "language_pairs": len(bitext),
        "documents": _total(text, "documents"),
        "tokens": _total(text, "tokens"),
        "text_bytes": _total(text, "bytes"),
        "pairs": _total(bitext, "pairs"),
        "pair_tokens": _total(bitext, "tokens"),
        **({"left_out": dict(left_out)} if left_out else {}),
    }


def _total(listed: Iterable[CorpusEntry], what: Count) -> int:
    return sum(int(about.get(what, 0)) for about in listed)


@contextmanager
def _lock(directory: Path, log: Log) -> Iterator[None]:
    """Lock the folder for this process; the kernel releases the lock whenever the process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is preparing {directory}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _committed(place: Path) -> Iterator[Path]:
    """A hidden folder that is renamed to `place` if the block succeeds and removed otherwise."""
    scratch = place.with_name(f".making-{place.name}")
    scratch.mkdir()
    try:
        yield scratch
        sync_tree(scratch)
        os.rename(scratch, place)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def corpus_files(recipe: Recipe) -> tuple[Files, Files]:
    """Text files by language and bitext files by pair, sorted."""
    return corpus.files(Path(recipe.data.directory) / "corpus")


def _make_corpus(recipe: Recipe, directory: Path, log: Log, workers: int | None) -> bool:
    place = directory / "corpus"
    if place.is_dir():
        return False
    with _committed(place) as folder:
        manifest.write(folder, corpus.make(folder, recipe.data, log, workers))
    return True


def _make_heldout(recipe: Recipe, directory: Path, log: Log) -> bool:
    place = directory / "heldout"
    if place.is_dir():
        return False
    text, bitext = corpus_files(recipe)
    with _committed(place) as folder:
        counts = heldout.write(folder, text, bitext, recipe.data.heldout_strings)
        manifest.write(folder, counts)
    log(f"{counts['strings']} source strings held out of {counts['asked']} asked for")
    for sentence in heldout.shortfalls(counts["by_language"], counts["asked"]) if counts["asked"] else ():
        log(sentence)
    return True


def _make_tokenizer(recipe: Recipe, directory: Path, log: Log) -> bool:
    place, config = directory / "tokenizer.model", recipe.data.tokenizer
    if place.is_file():
        return False
    samples = corpus_samples(*corpus_files(recipe), heldout.read_excluded(directory / "heldout"))
    scratch = place.with_name(".making-tokenizer.model")
    if config.path:
        _check_size(Tokenizer.load(config.path), recipe)
        taken = Tokenizer.load(config.path)
        log(f"using the tokenizer {config.path}, normalisation {taken.normalisation}")
        shutil.copyfile(config.path, scratch)
        by_language = report(Tokenizer.load(scratch), draw(samples, config))
    else:
        log(
            f"training a tokenizer of {recipe.model.vocab_size} ids, normalisation {config.normalisation}, on at most "
            f"{config.sample_bytes / 1e6:.0f} MB of text"
        )
        by_language = train_tokenizer(samples, config, recipe.model.vocab_size, scratch)
    for sentence in poorly_served(by_language):
        log(sentence)
    scratch_report = directory / ".making-tokenizer_report.json"
    scratch_report.write_text(json.dumps(by_language, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch_report, directory / REPORT)
    os.replace(scratch, place)
    return True


def tokenizer_report(recipe: Recipe) -> dict[str, Any]:
    """Language -> how well the tokenizer covers it (tokenizing/training.py); empty if no tokenizer is prepared."""
    path = Path(recipe.data.directory) / REPORT
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _make_store(recipe: Recipe, directory: Path, log: Log, workers: int | None, ranks: Ranks) -> None:
    tokenizer = Tokenizer.load(directory / "tokenizer.model")
    _check_size(tokenizer, recipe)
    text, bitext = corpus_files(recipe)
    about = {"settings": settings(recipe), "corpus": _about(directory / "corpus"), "heldout": _about(directory / "heldout")}
    if recipe.data.corpus == "files":
        # Named sources stay separate corpora, `en.books`: their weights mix them. The quickstart's files have none.
        text = {path.name.removesuffix(".txt"): [path] for paths in text.values() for path in paths}
    weights = {
        f"{language}.{name}" if name else language: source.weight
        for language, named in recipe.data.text.items()
        for name, source in named.items()
    }
    make_store(directory, text, bitext, about, recipe.data.max_pair_tokens, log, workers, ranks, weights)


def _about(folder: Path) -> dict[str, object]:
    """A step's manifest without its list of files."""
    return {name: value for name, value in manifest.read(folder).items() if name not in ("format", "files")}


def _check_size(tokenizer: Tokenizer, recipe: Recipe) -> None:
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids with <mask> and model.vocab_size is "
            f"{recipe.model.vocab_size}; set model.vocab_size to {tokenizer.vocab_size}"
        )


def _check_match(directory: Path) -> None:
    known, actual = TokenStore.open(directory / "store").tokenizer_hash, Tokenizer.load(directory / "tokenizer.model").hash
    if actual != known:
        raise UserError(
            f"{directory / 'tokenizer.model'} is not the tokenizer that the token store was written with "
            f"(SHA-256 {actual[:12]}..., not {known[:12]}...); delete {directory / 'store'} and run "
            "metaxlm prepare again"
        )
