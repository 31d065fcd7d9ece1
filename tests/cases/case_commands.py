"""Rows 1, 3, 5, 8, 9, 11 and 12 by the public commands, on a small corpus with such text: minutes of two cores."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from case import Case, put

POSIX = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
"""A terminal and files that are ASCII unless a command says otherwise."""
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI_", "MPI_", "PET_", "TORCHELASTIC_")
ODD = ("a\u2028b", "c\u2029d", "e\x85f", "g\x0ch", "می\u200cرود", "½ x²", "ＡＢ")
ORDERS = {
    "contrast first": (
        "phases.joint.objectives=[{name: contrast, pairs: 24, group: 24, layer: 1, max_tokens: 24},"
        " {name: mlm, batch_tokens: 1152}]",
    ),
    "drawn": (
        "phases.joint.objectives=[{name: mlm, batch_tokens: 1152},"
        " {name: contrast, pairs: 24, group: 24, layer: 1, max_tokens: 24}]",
        "phases.joint.mixing=draw",
    ),
}
STEPS = 24


def metaxlm(*words: str, ranks: int = 1, **variables: str) -> tuple[int, str]:
    """Exit code and output of a command, without the variables of a launcher that may have started this process."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    environment = {**own, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **variables}
    start = ["-m", "dist_metaxlm"]
    if ranks > 1:
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *start]
    done = subprocess.run([sys.executable, *start, *words], capture_output=True, env=environment, check=False)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def end(outcome: tuple[int, str]) -> str:
    """An exit code, with the last line where it is not 0."""
    code, output = outcome
    return "0" if code == 0 and "Traceback" not in output else f"{code} {output.strip().splitlines()[-1][:300]}"


@cache
def prepared(folder: Path) -> Path:
    """A recipe whose text has odd ends of lines and characters, in folders with brackets, with prepared data."""
    rng, place = random.Random(3), folder / "text [v1]"
    words = {"en": ["the", "lamp", "in", "harbour", "is", "green", "and", "boat", "small", "red", "old"]}
    words["de"] = ["die", "Lampe", "im", "Hafen", "ist", "grün", "und", "Boot", "klein", "rot", "alt"]
    rows = [[rng.randrange(11) for _ in range(rng.randrange(4, 10))] for _ in range(900)]
    sides = {
        code: [" ".join(of[n] for n in row) + f" {ODD[i % 7]}" for i, row in enumerate(rows)] for code, of in words.items()
    }
    for code, lines in sides.items():
        shards = [lines[first::3] for first in range(3)]
        for number, shard in enumerate(shards):
            text = "".join(json.dumps({"body": line}, ensure_ascii=False) + "\n" for line in shard)
            put(place / code / f"part [{number}]", text)
        put(place / code / "part [3]", "")
        put(place / code / "_SUCCESS", "")
        put(place / f"p.{code}", "\n".join(lines) + "\n")
    files = {code: {"files": [f"{place}/{code}/*"], "format": "jsonl", "text_field": "body"} for code in words}
    recipe = {
        "name": "cases",
        "model": {"layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 304, "max_positions": 64},
        "data": {
            "directory": str(folder / "data"),
            "corpus": "files",
            "reading": {"on_error": "skip"},
            "cleaning": {"unicode": "none", "control_characters": False, "deduplicate": []},
            "tokenizer": {"normalisation": "identity"},
            "heldout_strings": 40,
            "max_pair_tokens": 64,
            "text": {code: {"all": source} for code, source in files.items()},
            "bitext": {"en-de": [{"moses": [f"{place}/p.en", f"{place}/p.de"]}]},
        },
        "training": {"log_interval": 1, "checkpoint_interval": 4, "precision": "fp32"},
        "phases": {
            "defaults": {"sequence_length": 64, "mask_rate": 0.15, "learning_rate": {"peak": 1e-3, "warmup_steps": 2}},
            "meta": {"steps": 4, "languages": ["en"], "objectives": [{"name": "mlm", "batch_tokens": 512}]},
            "cross": {"steps": 4, "objectives": [{"name": "mlm", "batch_tokens": 512}]},
            "joint": {"steps": STEPS, "objectives": [{"name": "mlm", "batch_tokens": 512}]},
        },
    }
    path = put(folder / "recipe.yaml", yaml.safe_dump(recipe, allow_unicode=True))
    outcome = end(metaxlm("prepare", "--recipe", str(path), **POSIX))
    assert outcome == "0", outcome
    return path


def whole_path(folder: Path) -> list[str]:
    """Ends of every command, in an ASCII locale."""
    recipe, run, exported = str(prepared(folder.parent)), str(folder / "run"), str(folder / "export")
    return [
        end(metaxlm(*words, **POSIX))
        for words in (
            ("prepare", "verify", "--recipe", recipe),
            ("prepare", "inspect", "--recipe", recipe, "--phase", "meta"),
            ("pretrain", "--phase", "meta", "--recipe", recipe, "--run_dir", run, "training.probe_interval=2"),
            ("pretrain", "--phase", "cross", "--recipe", recipe, "--run_dir", run),
            ("evaluate", "--run_dir", run, "--phase", "untrained", "meta", "cross"),
            ("evaluate", "--run_dir", run, "--report"),
            ("convert", "export", "--run_dir", run, "--phase", "cross", "--output", exported, "--fill_mask", "en", "de"),
            ("convert", "import", "--input", exported, "--output", str(folder / "imported")),
        )
    ]


def left_out(folder: Path) -> dict[str, Any]:
    """[empty files, unreadable records] by language, in the manifest of the corpus."""
    manifest = next((prepared(folder.parent).parent / "data" / "corpus").glob("*.json"))
    text = json.loads(manifest.read_text(encoding="utf-8"))["text"]
    return {code: [of["left_out"][name] for name in ("empty_files", "unreadable_records")] for code, of in text.items()}


def clipped(folder: Path) -> list[Any]:
    """Clipping of a DeepSpeed file in the run's recipe; going on without the file, and with the recipe of the run."""
    recipe, run = str(prepared(folder.parent)), folder / "run"
    file = put(folder / "clip.json", json.dumps({"gradient_clipping": 1e-6, "zero_optimization": {"stage": 1}}))
    words = ("pretrain", "--phase", "meta", "--run_dir", str(run))
    found: list[Any] = [end(metaxlm(*words, "--recipe", recipe, "--deepspeed_config", str(file)))]
    code, output = metaxlm(*words, "--recipe", recipe)
    found.append((code, "optimizer.clip_norm was 1e-06, now 1.0" in output))
    found.append(end(metaxlm(*words, "--recipe", str(run / "recipe.yaml"), "--change", "phases.meta.steps=6")))
    return [*found, yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["optimizer"]["clip_norm"]]


def left_over(words: str, limit: float, **variables: str) -> Callable[[Path], Any]:
    """Whether a start with variables left over is refused with these words within a time, leaving nothing behind."""

    def run(folder: Path) -> Any:
        began = time.monotonic()
        recipe, place = str(prepared(folder.parent)), folder / "run"
        code, output = metaxlm("pretrain", "--phase", "meta", "--recipe", recipe, "--run_dir", str(place), **variables)
        said = words in output and "Traceback" not in output
        return (code, said, time.monotonic() - began < limit) if said else (code, output[-300:])

    return run


def offloaded(order: str, stage: int) -> Callable[[Path], Any]:
    """Largest relative difference that offload makes to losses and to gradient norms, on two ranks."""

    def run(folder: Path) -> Any:
        recipe, curves = str(prepared(folder.parent)), []
        for offload in ("false", "true"):
            place = folder / offload
            layout = (f"parallel.zero_stage={stage}", f"parallel.offload_optimizer={offload}")
            words = ("pretrain", "--phase", "joint", "--recipe", recipe, "--run_dir", str(place), *ORDERS[order], *layout)
            outcome = end(metaxlm(*words, ranks=2))
            if outcome != "0":
                return outcome
            rows = [json.loads(line) for line in (place / "joint" / "metrics.jsonl").open(encoding="utf-8")]
            curves.append([(row["loss"], row["grad_norm"]) for row in rows if "loss" in row])
            shutil.rmtree(place)
        differences = [max(abs(a - b) / b for a, b in zip(*pair, strict=True)) for pair in zip(*curves, strict=True)]
        return {"steps": len(curves[0]), "largest difference": max(differences)}

    return run


CASES = [
    Case(8, "every command in an ASCII locale, of text as in rows 1, 3, 9 and 10", whole_path, ["0"] * 8),
    Case(3, "empty shards, counted", left_out, {"en": [1, 0], "de": [1, 0]}),
    Case(5, "gradient_clipping of a file, then without the file", clipped, ["0", (2, True), "0", 1e-6]),
    Case(
        11,
        "RANK and WORLD_SIZE left over",
        left_over("unset RANK and WORLD_SIZE", 60, RANK="0", WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="29541"),
        (2, True, True),
    ),
    Case(11, "SLURM_NTASKS=4", left_over("no srun started", 30, SLURM_PROCID="0", SLURM_NTASKS="4"), (2, True, True)),
    Case(11, "PMI_SIZE=x", left_over("PMI_SIZE='x'", 30, PMI_SIZE="x"), (2, True, True)),
    Case(11, "DS_ACCELERATOR=cuda", left_over("DS_ACCELERATOR=cuda is set", 60, DS_ACCELERATOR="cuda"), (2, True, True)),
    *(
        Case(12, f"{order}, ZeRO-{stage}", offloaded(order, stage), {"steps": STEPS, "largest difference": 0.0})
        for order in ORDERS
        for stage in (1, 2, 3)
    ),
]
