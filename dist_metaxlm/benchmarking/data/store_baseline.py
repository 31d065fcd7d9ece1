"""Baseline that works like Megatron-LM's tools/preprocess_data.py: encodes documents one at a time and adds each to
megatron-core's IndexedDatasetBuilder; with several workers, a pool returns each document's list of ids.

Same tokenizer, same text, same ids as our store. Run as `python -m dist_metaxlm.benchmarking.data.store_baseline`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_metaxlm.data.special_tokens import BOS, EOS
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.preparation.prepare import corpus_files
from dist_metaxlm.preparation.readers import dispatch as readers
from dist_metaxlm.preparation.store.writer import token_dtype
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe

CHUNK = 32
"""Documents sent to a worker at once, as in preprocess_data.py."""

_tokenizer: Tokenizer | None = None

Item = str | tuple[str, str]


def _load(path: str) -> None:
    global _tokenizer
    _tokenizer = Tokenizer.load(path)


def _encode(item: Item) -> tuple[list[int], list[int]]:
    """Ids and sequence lengths of a document or a pair."""
    assert _tokenizer is not None
    if isinstance(item, str):
        ids = [BOS, *_tokenizer.encode(item), EOS]
        return ids, [len(ids)]
    first, second = (_tokenizer.encode(side) for side in item)
    return [BOS, *first, EOS, *second, EOS], [len(first) + 2, len(second) + 1]


@contextmanager
def _mapper(tokenizer: Path, workers: int) -> Iterator[object]:
    if workers == 1:
        _load(str(tokenizer))
        yield lambda items: map(_encode, items)
        return
    with multiprocessing.Pool(workers, _load, (str(tokenizer),)) as pool:
        yield lambda items: pool.imap(_encode, items, CHUNK)


def write_store(recipe: Recipe, target: Path, workers: int) -> None:
    """Write `target`/<name>.bin/.idx for the prepared corpus and tokenizer of a recipe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    tokenizer = Path(recipe.data.directory) / "tokenizer.model"
    dtype = token_dtype(recipe.model.vocab_size)
    text, bitext = corpus_files(recipe)
    streams: dict[str, Iterable[Item]] = {
        **{name: (" ".join(document) for document in readers.documents(paths)) for name, paths in text.items()},
        **{name: readers.pairs(paths) for name, paths in bitext.items()},
    }
    with _mapper(tokenizer, workers) as encoded:
        for name, items in streams.items():
            builder = IndexedDatasetBuilder(str(target / f"{name}.bin"), dtype=dtype)
            for ids, lengths in encoded(items):  # type: ignore[operator]
                if name in text or (sum(lengths) <= recipe.data.max_pair_tokens and lengths[0] > 2 and lengths[1] > 1):
                    builder.add_document(ids, lengths)
            builder.finalize(str(target / f"{name}.idx"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    target = Path(arguments.target)
    target.mkdir(parents=True)
    write_store(load_recipe(arguments.recipe, arguments.overrides), target, arguments.workers)
    print(f"written {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
