"""A tiny corpus in three made-up languages, prepared once, and a way to start real ranks on this machine."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Triton decides when it is imported whether its kernels are compiled or interpreted, and DeepSpeed imports it: so it is
# said here. Only tests that force the Triton backend run interpreted kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")
# The tests are of a CPU, on a machine with GPUs too; those that need one run with TRITON_INTERPRET=0 (docs/kernels.md).
if os.environ["TRITON_INTERPRET"] == "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import prefork

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    "en": " ".join(
        [
            "the",
            "house river stone small green walks sees old garden bread water child night winter song open door bird moon",
        ]
    ),
    "de": "das Haus Fluss Stein klein grün geht sieht alt Garten Brot Wasser Kind Nacht Winter Lied offen Tür Vogel Mond",
    "el": "το σπίτι ποτάμι πέτρα μικρό πράσινο πάει βλέπει παλιό κήπος "
    "ψωμί νερό παιδί νύχτα χειμώνας τραγούδι ανοιχτή πόρτα πουλί φεγγάρι",
}


def sentence(words: dict[str, list[str]], numbers: list[int]) -> dict[str, str]:
    return {language: " ".join(vocabulary[n] for n in numbers) for language, vocabulary in words.items()}


LONGEST_FIRST = (
    "tests/test_readme.py",
    "tests/distributed/test_layouts.py",
    "tests/launch/test_pretrain.py",
    "tests/distributed/",
    "tests/launch/",
    "tests/training/",
    "tests/benchmarking/",
)
"""Files and folders by the time they take: begun last, one of them would keep a single worker busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start)), len(LONGEST_FIRST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a run inside the tests' own process says of its ranks must not reach those that later tests start."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name != "PYTEST_CURRENT_TEST"})


@pytest.fixture(autouse=True)
def log_of_a_command() -> None:
    """Messages go where a command of one process sends them, whatever an earlier test of this process has set up."""
    from dist_metaxlm import logs

    logs.set_up()


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a recipe with both phases on a tiny corpus of text files; its data is prepared."""
    return prepare_tiny_recipe(tmp_path_factory.mktemp("tiny"))


def prepare_tiny_recipe(folder: Path) -> Path:
    rng = random.Random(7)
    words = {language: text.split() for language, text in WORDS.items()}
    sentences = [sentence(words, [rng.randrange(20) for _ in range(rng.randrange(3, 12))]) for _ in range(1500)]
    for language in words:
        paragraphs = [s[language] + ("\n" if i % 5 == 4 else "") for i, s in enumerate(sentences)]
        (folder / f"{language}.txt").write_text("\n".join(paragraphs) + "\n", encoding="utf-8")
    for other in ("de", "el"):
        lines = [f"{s['en']}\t{s[other]}\n" for s in sentences]
        (folder / f"en-{other}.tsv").write_text("".join(lines), encoding="utf-8")
    recipe = {
        "name": "tiny",
        "seed": 3,
        "model": {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 380, "max_positions": 64},
        "data": {
            "directory": str(folder / "data"),
            "corpus": "files",
            "heldout_strings": 20,
            "max_pair_tokens": 32,
            "text": {language: [str(folder / f"{language}.txt")] for language in words},
            "bitext": {f"en-{other}": [str(folder / f"en-{other}.tsv")] for other in ("de", "el")},
        },
        "training": {"log_interval": 2, "checkpoint_interval": 4},
        "phases": {
            "defaults": {
                "sequence_length": 32,
                "mask_rate": 0.2,
                "alpha": 0.5,
                "pair_alpha": 0.5,
                "learning_rate": {"peak": 3e-3, "warmup_steps": 2},
            },
            "meta": {"steps": 8, "languages": ["en"], "objectives": [{"name": "mlm", "batch_tokens": 512}]},
            "cross": {
                "steps": 12,
                "objectives": [
                    {"name": "mlm", "batch_tokens": 256},
                    {"name": "tlm", "batch_tokens": 256},
                    {"name": "contrast", "pairs": 16, "group": 16, "layer": 2, "max_tokens": 24},
                ],
            },
            "joint": {
                "steps": 6,
                "objectives": [
                    {"name": "mlm", "batch_tokens": 256},
                    {"name": "tlm", "batch_tokens": 128, "weight": 0.5},
                    {"name": "contrast", "pairs": 16, "group": 16, "layer": 2, "max_tokens": 24},
                ],
            },
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    from dist_metaxlm.preparation.prepare import prepare
    from dist_metaxlm.recipe.load import load_recipe

    prepare(load_recipe(path), lambda line: None)
    return path


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **prefork.ON_A_CPU,
    }


def start(ranks: int, *command: str | Path, cwd: Path = ROOT) -> list[prefork.Child | subprocess.Popen[str]]:
    """Start `ranks` processes of a script with the environment that a launcher would give them."""
    from dist_metaxlm.parallel.topology import free_port

    port = free_port()
    words = [str(word) for word in command]
    return [prefork.start(words, cwd, rank_environment(rank, ranks, port), rank) for rank in range(ranks)]


def run(ranks: int, *command: str | Path, cwd: Path = ROOT, timeout: float = 900) -> str:
    """Run `ranks` processes of a script to their end; returns rank 0's standard output, fails with all errors shown."""
    processes = start(ranks, *command, cwd=cwd)
    try:
        outcomes = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()  # of those that still run: a late rank would go on beside the other tests
    failed = [
        f"rank {rank} exit {process.returncode}:\n{out}\n{err}"
        for rank, (process, (out, err)) in enumerate(zip(processes, outcomes, strict=True))
        if process.returncode
    ]
    assert not failed, "\n".join(failed)
    return outcomes[0][0]


@pytest.fixture(scope="session", autouse=True)
def servers_end_with_the_tests() -> Iterator[None]:
    yield
    prefork.close()


@pytest.fixture(scope="session")
def start_ranks() -> Callable[..., list[subprocess.Popen[str]]]:
    """`start`."""
    return start


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., str]:
    """`run`."""
    return run
