"""`make fuzz`: damaged stores and text files by the thousand; stores in child processes, so that a fault of the memory map
is seen as one."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from damaged_files import read_damaged
from mutate import make_store, mutate, read_everything

BATCH = 500


def batch(first: int, count: int, queue: multiprocessing.Queue[Counter[str]]) -> None:
    """Read the stores damaged by seeds first .. first + count - 1."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        whole.mkdir()
        make_store(whole)
        for seed in range(first, first + count):
            folder = Path(place) / "store"
            shutil.copytree(whole, folder)
            try:
                name = mutate(folder, seed)
                outcome = read_everything(folder)
            except BaseException:
                print(f"seed {seed}", file=sys.stderr)
                raise
            outcomes[f"{name}: {'read' if outcome == 'whole' else 'refused'}"] += 1
            shutil.rmtree(folder)
    queue.put(outcomes)


def read_files(first: int, count: int) -> None:
    """Read the text files damaged by seeds first .. first + count - 1; raises what no reader may raise."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        for seed in range(first, first + count):
            try:
                outcomes[read_damaged(Path(place), seed)] += 1
            except BaseException:
                print(f"text files, seed {seed}", file=sys.stderr)
                raise
    print("\n".join(f"{outcome} {number}" for outcome, number in sorted(outcomes.items())))
    print(f"{count} damaged text files: each read, or refused in a sentence")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=12_000, help="damaged stores (default: 12,000)")
    parser.add_argument("--files", type=int, default=10_000, help="damaged text files (default: 10,000)")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    arguments = parser.parse_args()
    if arguments.files:
        read_files(arguments.first, arguments.files)
    context = multiprocessing.get_context("fork")
    totals: Counter[str] = Counter()
    for first in range(arguments.first, arguments.first + arguments.count, BATCH):
        queue: multiprocessing.Queue[Counter[str]] = context.Queue()
        child = context.Process(target=batch, args=(first, min(BATCH, arguments.first + arguments.count - first), queue))
        child.start()
        child.join()
        if child.exitcode:
            print(f"seeds from {first}: exit code {child.exitcode}", file=sys.stderr)
            return 1
        totals += queue.get()
    print("\n".join(f"{outcome} {count}" for outcome, count in sorted(totals.items())))
    print(f"{sum(totals.values())} damaged stores: no crash, nothing read past the end")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
