"""The known case: two languages that differ only in token ids must become aligned under masked language modelling.

After Dufter and Schütze (arXiv 2005.00396; code pdufter/minimult): a small, narrow encoder with one attention head learns
English and fake English (study/fake_language.py) by MLM alone; then a held-out sentence must retrieve its copy.
Published: .97 at layer 8 of 12 after 13,500 steps of 256 sentences, on a Bible that may not be redistributed. Text,
tokenizer and model here are our own and smaller, so compare scores with BAR, not with the published ones.

The untrained model is the control. Positions are shared, so it sees the length of a sentence, but among sentences of
equal length it must score at chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
import yaml

from dist_metaxlm.data.special_tokens import UNK
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout import read_strings
from dist_metaxlm.evaluation.measures.embed import embed
from dist_metaxlm.evaluation.measures.retrieval import distinct_pairs, fixed_layer, precision_at_1
from dist_metaxlm.evaluation.run import load_encoder, window_of
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.preparation import prepare
from dist_metaxlm.preparation.tokenizing.training import TextSample, train_tokenizer
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Recipe, TokenizerConfig
from dist_metaxlm.reporting.metrics import read_json, read_metrics, write_json
from dist_metaxlm.study import fake_language
from dist_metaxlm.study.arms import Arm
from dist_metaxlm.study.fake_language import FAKE, LANGUAGE
from dist_metaxlm.study.training import Workers
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.run.environment import environment

BAR = 0.5
"""Retrieval at the fixed layer that a trained model must pass."""
PIECES = 400
"""Ordinary tokens of one language."""
WORDS = (4, 10)
"""Minimum and maximum words of a sentence."""
SENTENCES, PAIRS, HELD_OUT = 6000, 4000, 500
"""Sentences read; candidates for held-out strings (at most 15% are used); held-out strings requested."""
PHASE = "joint"
RECIPE: dict[str, Any] = {
    "name": "fake-english",
    "seed": 1,
    # under-parameterised models align better (arXiv 2005.00396); fewer layers and words than there, for a CPU
    "model": {"layers": 3, "hidden": 64, "heads": 1, "ffn": 256, "vocab_size": 2 * PIECES + UNK + 2, "max_positions": 64},
    "parallel": {"zero_stage": 0},
    "training": {
        "log_interval": 50,
        "checkpoint_interval": 1000,
        "keep_checkpoints": 1,
        "probe_interval": 250,
        "probe_strings": 200,
    },
    "phases": {
        PHASE: {
            "steps": 4000,
            "alpha": 1.0,
            "sequence_length": 64,
            "mask_rate": 0.15,
            "objectives": [{"name": "mlm", "batch_tokens": 1024}],
            "learning_rate": {"peak": 3e-3, "schedule": "linear", "warmup_steps": 50},
        }
    },
}
"""The training recipe; every field can be overridden."""


@dataclass(frozen=True)
class FakeEnglishOptions:
    """The command line of `metaxlm study fake-english`."""

    output: Path
    """Folder of the run."""
    text: tuple[str, ...]
    """English text, in the form of `data.text`."""
    parallel: bool = True
    """True: both languages contain all sentences; False: the first half is English and the second fake."""
    overrides: tuple[str, ...] = ()
    """Recipe fields as key=value."""


class LayerFigures(TypedDict):
    """The result of `measure`, by layer."""

    retrieval: list[float]
    same_length: list[float]
    shuffled: list[float]
    translation: list[float]
    same_length_chance: float


def fake_english_study(options: FakeEnglishOptions, log: Callable[[str], None]) -> dict[str, object]:
    """Make the languages, train with `metaxlm pretrain`, measure; resumes an interrupted study.

    Returns the contents of `fake-english.json` in the output folder; `reached`: whether retrieval passed BAR.
    Errors: UserError for too little text, another run in the folder, or an error of training.
    """
    recipe = make_languages(options, log)
    arm = Arm("fake English" if options.parallel else "fake English, no parallel text", None, recipe.seed, recipe, (PHASE,))
    directory = Path(recipe.data.directory)
    english, shifted = held_out(
        Tokenizer.load(directory / "tokenizer.model"), directory / "heldout" / "strings.jsonl", window_of(recipe)
    )
    untrained = measure(Encoder(recipe.model, recipe.seed), english, shifted, window_of(recipe))
    log(f"untrained: {_shown(untrained)}")
    with Workers(jobs=1, ranks=1) as workers:
        workers.run([arm], lambda only: workers.train(only, options.output), lambda only, result: None)
    trained = measure(load_encoder(options.output, PHASE)[1], english, shifted, window_of(recipe))
    log(f"trained: {_shown(trained)}")
    records = read_metrics(options.output / PHASE / "metrics.jsonl")
    layer = fixed_layer(recipe.model.layers)
    result = {
        "case": arm.label,
        "reached": trained["retrieval"][layer] > BAR,
        "bar": BAR,
        "layer": layer,
        "retrieval": trained["retrieval"][layer],
        "candidates": len(english),
        "chance": 1 / len(english),
        "untrained": untrained,
        "trained": trained,
        "curve": [
            {"step": record["step"], "loss": record["loss"], "retrieval": record["probe"]["retrieval"]}
            for record in records
            if "probe" in record
        ],
        "curve_candidates": next((record["probe"]["strings"] for record in records if "probe" in record), None),
        "steps": records[-1]["step"],
        "tokens": records[-1]["tokens"],
        "seconds": round(records[-1]["seconds"], 1),
        "recipe": {key: part for key, part in recipe.model_dump(mode="json").items() if key != "data"},
        "environment": environment(),
    }
    write_json(options.output / "fake-english.json", result)
    return result


def make_languages(options: FakeEnglishOptions, log: Callable[[str], None]) -> Recipe:
    """Write text, tokenizer and recipe of the case into the output folder, and prepare its data as for any run.

    Errors: UserError for too few sentences, and for a folder with the case of other text.
    """
    folder = options.output / "text"
    asked = {"text": list(options.text), "parallel": options.parallel}
    before = read_json(options.output / "plan.json")
    if before is not None and before != asked:
        raise UserError(
            f"{options.output} holds the case of {' '.join(before['text'])}, parallel text: {before['parallel']}"
            "; give another --output"
        )
    if before is None:
        sentences = read_sentences(options.text)
        folder.mkdir(parents=True, exist_ok=True)
        fake_language.write_corpus(folder, sentences, PAIRS, options.parallel)
        config = TokenizerConfig(byte_fallback=False, character_coverage=1.0)
        train_tokenizer({LANGUAGE: TextSample(sentences)}, config, PIECES + UNK + 2, folder / "english.model")
        (folder / "doubled.model").write_bytes(fake_language.doubled((folder / "english.model").read_bytes()))
        (folder / "recipe.yaml").write_text(yaml.safe_dump(_recipe(options.output, folder)), encoding="utf-8")
        write_json(options.output / "plan.json", asked)
    recipe = load_recipe(folder / "recipe.yaml", options.overrides)
    prepare.prepare(recipe, log)
    return recipe


def _recipe(output: Path, text: Path) -> dict[str, object]:
    data = {
        "directory": str(output / "data"),
        "heldout_strings": HELD_OUT,
        "tokenizer": {"path": str(text / "doubled.model")},
        "text": {name: [str(text / f"{name}.txt")] for name in (LANGUAGE, FAKE)},
        "bitext": {f"{LANGUAGE}-{FAKE}": [str(text / f"{LANGUAGE}-{FAKE}.tsv")]},
        # the sentences are clean already
        "cleaning": {"unicode": "none", "control_characters": False, "deduplicate": []},
    }
    return {**RECIPE, "data": data}


def read_sentences(text: Iterable[str]) -> list[str]:
    """SENTENCES distinct plain sentences, shuffled with a fixed seed. Errors: UserError if there are too few."""
    paths = [Path(name) for name in text]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"no text at {missing[0]}; run metaxlm prepare corpus --recipe quickstart, or name a file of English with --text"
        )
    sentences = list(fake_language.plain_sentences(paths, *WORDS))
    if len(sentences) < PAIRS:
        raise UserError(
            f"{' '.join(text)} has {pluralize(len(sentences), 'different sentence')} of {WORDS[0]} to {WORDS[1]} "
            f"plain words, and {PAIRS} are needed; give more text with --text"
        )
    # so that neighbouring sentences, and the halves without parallel text, do not share a topic
    random.Random(0).shuffle(sentences)
    return sentences[:SENTENCES]


def held_out(tokenizer: Tokenizer, path: Path, window: int) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of the held-out sentences in both languages, sentence by sentence; those that differ within the window."""
    rows = read_strings(path)
    english, shifted = (
        [ids[: window - 2] for ids in tokenizer.encode_batch([row[language] for row in rows])]
        for language in (LANGUAGE, FAKE)
    )
    kept = distinct_pairs(english, shifted)
    return [english[number] for number in kept], [shifted[number] for number in kept]


def measure(encoder: Encoder, english: Sequence[list[int]], shifted: Sequence[list[int]], window: int) -> LayerFigures:
    """Retrieval of sentences and words across the two languages, by layer.

    Mean over a sentence's tokens without `<s>` and `</s>`, cosine, mean of both directions, as in arXiv 2005.00396.

    Returns:
        `retrieval`: every held-out sentence is a candidate. `same_length`: only those with the same number of
        tokens, with `same_length_chance`. `shuffled`: the same with the words of the fake sentences in another order.
        `translation`: every token, alone between `<s>` and `</s>`.
    """
    turn = random.Random(0)
    orders = [turn.sample(ids, len(ids)) for ids in shifted]
    one, other, shuffled = (embed(encoder, side, window, include_special=False) for side in (english, shifted, orders))
    lengths = torch.tensor([len(ids) for ids in english], device=one.device)
    words = (encoder.config.vocab_size - UNK - 2) // 2
    tokens = [[number] for number in range(UNK + 1, UNK + 1 + words)]
    alone = [
        embed(encoder, [[number + shift] for [number] in tokens], window, include_special=False) for shift in (0, words)
    ]
    return {
        "retrieval": _both_ways(one, other),
        "same_length": _within(one, other, lengths),
        "shuffled": _within(one, shuffled, lengths),
        "translation": _both_ways(*alone),
        "same_length_chance": lengths.unique().numel() / len(lengths),
    }


def _both_ways(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Mean of both directions' P@1 of [K, N, H] vectors, by layer."""
    return [(a + b) / 2 for a, b in zip(precision_at_1(first, second), precision_at_1(second, first), strict=True)]


def _within(first: torch.Tensor, second: torch.Tensor, lengths: torch.Tensor) -> list[float]:
    """The same among sentences of equal length, mean over sentences."""
    total = torch.zeros(first.shape[0], dtype=torch.float64)
    for length in lengths.unique():
        group = lengths == length
        total += torch.tensor(_both_ways(first[:, group], second[:, group]), dtype=torch.float64) * int(group.sum())
    return (total / len(lengths)).tolist()


def _shown(figures: LayerFigures) -> str:
    return ", ".join(
        f"{name} {' '.join(f'{value:.3f}' for value in values)}"
        for name, values in (
            ("retrieval", figures["retrieval"]),
            ("same length", figures["same_length"]),
            ("shuffled", figures["shuffled"]),
            ("translation", figures["translation"]),
        )
    )
