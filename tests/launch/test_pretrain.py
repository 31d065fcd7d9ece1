"""launch/pretrain.py on a tiny corpus: both phases, resuming, layouts, and what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import prefork
import pytest
import torch
from safetensors.torch import load_file, save_file

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.heldout_loss import HeldoutLoss
from dist_metaxlm.evaluation.probe import HeldoutProbe
from dist_metaxlm.modeling.initialisation import initial_values
from dist_metaxlm.parallel.topology import free_port
from dist_metaxlm.training.pretrain import Options, pretrain
from dist_metaxlm.training.run.lease import Lease
from dist_metaxlm.training.run.trained_phase import load_weights

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "pretrain.py"
Run = Callable[..., str]
NO_PROBE = ["training.probe_interval=0"]
AFTER_STEP = """
import os, runpy, signal, sys, time
from dist_metaxlm.training.loop import resilience
acts = {"wait": lambda: time.sleep(600), "stop": lambda: os.kill(os.getpid(), signal.SIGTERM)}
(_, step, act, *sys.argv), agreed = sys.argv, resilience.StopRequest.agreed
def acting(self, done):
    if done == int(step) and os.environ["RANK"] == "1":
        acts[act]()
    return agreed(self, done)
resilience.StopRequest.agreed, resilience.LOOK_SECONDS = acting, 0.0
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script whose second rank does something of its own after a step: waits to be killed, or is asked to stop."""


def curve(run: Path, phase: str) -> list[tuple[int, float, dict[str, float]]]:
    """(step, loss, losses) of every logged line; floats compare bitwise."""
    lines = (run / phase / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["step"], r["loss"], r["losses"]) for r in map(json.loads, lines)]


def command(recipe: Path, run: Path, phase: str, *more: str) -> list[str]:
    return [
        str(SCRIPT),
        "--phase",
        phase,
        "--recipe",
        str(recipe),
        "--run_dir",
        str(run),
        "training.probe_interval=4",
        "training.heldout_interval=4",
        *more,
    ]


@pytest.fixture(scope="session")
def undisturbed(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Run) -> Path:
    """A run with both phases, two ranks, ZeRO-1."""
    run = tmp_path_factory.mktemp("undisturbed")
    for phase in ("meta", "cross"):
        run_ranks(2, *command(tiny_recipe, run, phase))
    return run


def test_both_phases_run_and_are_recognised_as_finished(undisturbed: Path, tiny_recipe: Path, run_ranks: Run) -> None:
    meta, cross = curve(undisturbed, "meta"), curve(undisturbed, "cross")
    assert [step for step, *_ in meta] == [2, 4, 6, 8]
    assert set(cross[0][2]) == {"mlm", "tlm", "contrast"}
    assert meta[-1][1] < meta[0][1]
    assert cross[-1][1] < cross[0][1]
    assert (undisturbed / "cross" / "tensorboard").is_dir()
    carried = json.loads((undisturbed / "cross" / "carry_over.json").read_text())
    assert carried["unseen_tokens"] > 0
    assert carried["embeddings_before"] == carried["embeddings_after"]
    records = [json.loads(line) for line in (undisturbed / "cross" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "probe" in record] == [4, 8, 12]
    assert set(records[-1]["probe"]["languages"]) == {"de", "el"}
    measured = [record["heldout"] for record in records if "heldout" in record]
    assert [record["step"] for record in records if "heldout" in record] == [4, 8, 12]
    assert set(measured[-1]["languages"]) == {"en", "de", "el"}
    assert measured[-1]["bits_per_byte"] < measured[0]["bits_per_byte"]
    assert measured[-1]["word_frequencies"] == measured[0]["word_frequencies"] > 0.5
    record = records[-1]
    assert sum(record["realised"]["mlm"].values()) == 12 * 256 // 32
    assert sum(record["asked"]["mlm"].values()) == pytest.approx(1.0)
    assert set(record["language_losses"]["contrast"]) <= {"en-de", "en-el"}
    before = curve(undisturbed, "cross")
    out = run_ranks(1, *command(tiny_recipe, undisturbed, "cross"))
    assert re.search(
        r"is already finished \(12 steps, loss \d+\.\d{3}\)\. To retrain from scratch, pass `--resume never`\.", out
    )
    assert curve(undisturbed, "cross") == before


def test_killed_in_the_middle_of_cross_the_resumed_curve_is_bitwise_the_undisturbed_one(
    undisturbed: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    run_ranks: Run,
    start_ranks: Callable[..., list[subprocess.Popen[str]]],
) -> None:
    run = tmp_path / "killed"
    shutil.copytree(undisturbed / "meta", run / "meta")
    # Past the checkpoint of step 4 and before the end: the work after step 4 is lost and must come out the same again.
    processes = start_ranks(2, "-c", AFTER_STEP, "7", "wait", *command(tiny_recipe, run, "cross"))
    metrics = run / "cross" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    saved = run / "cross" / "checkpoints" / "step-00000004"
    while not (saved.is_dir() and metrics.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait(timeout=30)
    assert not (run / "cross" / "done.json").is_file()
    out = run_ranks(2, *command(tiny_recipe, run, "cross"))
    assert "resuming after step" in out
    assert curve(run, "cross") == curve(undisturbed, "cross")
    resumed, straight = (load_weights(r, "cross")[1] for r in (run, undisturbed))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


@pytest.mark.parametrize("step", [4, 7])
def test_sigterm_saves_and_exits_75_and_the_resumed_curve_is_the_undisturbed_one(
    undisturbed: Path,
    tiny_recipe: Path,
    tmp_path: Path,
    run_ranks: Run,
    start_ranks: Callable[..., list[subprocess.Popen[str]]],
    step: int,
) -> None:
    """After a line of metrics, and in the middle of the interval of the next, as where steps are long."""
    shutil.copytree(undisturbed / "meta", tmp_path / "meta")
    processes = start_ranks(
        2, "-c", AFTER_STEP, str(step), "stop", *command(tiny_recipe, tmp_path, "cross", "training.checkpoint_interval=100")
    )
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], errors
    assert f"stopped after step {step} of 12 and saved; run the same command again" in errors[0]
    assert not (tmp_path / "cross" / "done.json").exists()
    run_ranks(2, *command(tiny_recipe, tmp_path, "cross"))
    assert curve(tmp_path, "cross") == curve(undisturbed, "cross")
    realised = [
        json.loads((run / "cross" / "metrics.jsonl").read_text().splitlines()[-1])["realised"]
        for run in (tmp_path, undisturbed)
    ]
    assert realised[0] == realised[1]


@pytest.fixture(scope="session")
def single_process(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory, run_ranks: Run) -> Path:
    """The joint phase (all objectives) on one rank without ZeRO: what every layout is compared with."""
    run = tmp_path_factory.mktemp("single")
    run_ranks(1, *command(tiny_recipe, run, "joint", "parallel.zero_stage=0"))
    return run


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ["parallel.micro_batch_tokens=64"]),
        (2, []),
        (2, ["parallel.zero_stage=0"]),
        (2, ["parallel.zero_stage=2"]),
        (2, ["parallel.zero_stage=3"]),
        (4, ["parallel.micro_batch_tokens=32"]),
    ],
)
def test_no_layout_changes_the_losses(
    single_process: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run, ranks: int, overrides: list[str]
) -> None:
    run_ranks(ranks, *command(tiny_recipe, tmp_path, "joint", *overrides))
    ours, reference = curve(tmp_path, "joint"), curve(single_process, "joint")
    assert [step for step, *_ in ours] == [step for step, *_ in reference] == [2, 4, 6]
    for (_, _, losses), (_, _, expected) in zip(ours, reference, strict=True):
        assert losses == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["parallel.tensor=2", "parallel.sequence=true"], "tensor 2 (sequence) x data 1, ZeRO-1"),
        (["parallel.pipeline=2", "parallel.micro_batch_tokens=64"], "pipeline 2 x data 1, ZeRO-1"),
    ],
)
def test_cross_goes_on_from_meta_on_another_layout(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run, overrides: list[str], said: str
) -> None:
    run = tmp_path / "other"
    shutil.copytree(undisturbed, run)
    shutil.rmtree(run / "cross")
    out = run_ranks(2, *command(tiny_recipe, run, "cross", *overrides))
    assert said in out
    lines = [
        [json.loads(line) for line in (r / "cross" / "metrics.jsonl").read_text().splitlines()] for r in (run, undisturbed)
    ]
    for ours, expected in zip(*lines, strict=True):
        assert ours["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        assert ours["realised"] == expected["realised"]
        assert ("probe" in ours) == ("probe" in expected)
        if "probe" in ours:  # a sentence with two neighbours equally near may turn
            assert ours["probe"]["retrieval"] == pytest.approx(expected["probe"]["retrieval"], abs=0.06)
    spread, whole = (load_weights(r, "cross")[1] for r in (run, undisturbed))
    assert {name: value.shape for name, value in spread.items()} == {name: value.shape for name, value in whole.items()}


def test_bf16_is_saved_and_resumed_bitwise(tiny_recipe: Path, tmp_path: Path, run_ranks: Run) -> None:
    runs = [tmp_path / "whole", tmp_path / "resumed"]
    run_ranks(2, *command(tiny_recipe, runs[0], "joint", "training.precision=bf16"))
    shutil.copytree(runs[0], runs[1])
    (runs[1] / "joint" / "done.json").unlink()
    run_ranks(2, *command(tiny_recipe, runs[1], "joint", "training.precision=bf16", "--resume", "4"))
    assert curve(runs[0], "joint") == curve(runs[1], "joint")
    masters = load_weights(runs[0], "joint")[1]["embedding.tokens.weight"]
    assert not torch.equal(masters, masters.bfloat16().float()), "fp32 masters were rounded on their way to the disk"


def test_resuming_on_another_layout_goes_on_with_the_same_losses(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(undisturbed, run)
    (run / "cross" / "done.json").unlink()
    run_ranks(1, *command(tiny_recipe, run, "cross", "--resume", "8", "parallel.zero_stage=0"))
    assert [c[:1] for c in curve(run, "cross")] == [c[:1] for c in curve(undisturbed, "cross")]
    assert curve(run, "cross")[-1][2] == pytest.approx(curve(undisturbed, "cross")[-1][2], rel=1e-5)


def test_denoising_word_alignment_joins_in_cross_and_is_resumed_on_two_ranks(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run
) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    objectives = "[{name: mlm, batch_tokens: 128}, {name: dwa, batch_tokens: 256, layer: 1}]"
    more = [f"phases.cross.objectives={objectives}", "phases.cross.steps=8", "carry_over.optimizer=carry"]
    shutil.copytree(undisturbed / "meta", runs[0] / "meta")
    said = run_ranks(1, *command(tiny_recipe, runs[0], "cross", *more, "parallel.zero_stage=0"))
    assert "freshly initialised, the previous phase had none: objectives.dwa.query.weight" in said
    assert curve(runs[0], "cross")[-1][2]["dwa"] < curve(runs[0], "cross")[0][2]["dwa"]
    last = runs[0] / "cross" / "checkpoints" / "step-00000008"
    assert "objectives-00000.safetensors" in json.loads((last / "manifest.json").read_text())["files"]
    # what is exported and evaluated is the encoder alone
    assert not any(name.startswith("objectives") for name in load_weights(runs[0], "cross")[1])
    shutil.copytree(runs[0], runs[1])
    (runs[1] / "cross" / "done.json").unlink()
    run_ranks(2, *command(tiny_recipe, runs[1], "cross", *more, "--resume", "4"))
    for ours, expected in zip(curve(runs[1], "cross"), curve(runs[0], "cross"), strict=True):
        assert ours[2] == pytest.approx(expected[2], rel=1e-5)


def test_a_damaged_newest_checkpoint_falls_back_loudly(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, start_ranks: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(undisturbed / "meta", run / "meta")
    (run / "meta" / "done.json").unlink()
    victim = run / "meta" / "checkpoints" / "step-00000008" / "weights-00000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-5] ^= 1
    victim.write_bytes(content)
    process = start_ranks(1, *command(tiny_recipe, run, "meta"))[0]
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "checkpoint skipped" in err
    assert "resuming after step 4" in out


def fails_with_one_sentence(*arguments: str, code: int = 2, cwd: Path = ROOT) -> str:
    result = prefork.start([str(SCRIPT), *arguments], cwd, {**os.environ, **prefork.ON_A_CPU})
    said = result.communicate(timeout=120)[1]
    assert result.returncode == code, said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "Traceback" not in said
    return errors[0]


def test_cross_without_meta(tiny_recipe: Path, tmp_path: Path) -> None:
    message = fails_with_one_sentence(*command(tiny_recipe, tmp_path / "new", "cross")[1:])
    assert "--phase meta" in message
    assert not (tmp_path / "new").exists()


def test_all_mistakes_of_a_recipe_at_once(tiny_recipe: Path, tmp_path: Path) -> None:
    message = fails_with_one_sentence(*command(tiny_recipe, tmp_path / "new", "meta", "model.hiden=3", "sead=4")[1:])
    assert "did you mean hidden" in message
    assert "did you mean seed" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.tensor=2", "does not divide 1 rank; nearest legal layout: parallel.tensor=1"),
        ("--resume=²", "neither auto, never nor the step"),
        ("--deepspeed_config=missing.json", "no such file"),
        ("model.vocab_size=500", "vocab_size"),
        ("phases.meta.languages=[fr]", "'fr' is not in the token store"),
        ("phases.meta.sequence_length=64", "batch_tokens"),
        ("data.text={en: [nowhere.txt]}", "nowhere.txt"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tiny_recipe: Path, tmp_path: Path, override: str, words: str) -> None:
    extra = [override]
    if override.startswith("phases.meta.sequence_length"):
        extra = ["phases.meta.sequence_length=48"]
    if override.startswith("data.text"):
        extra += [f"data.directory={tmp_path / 'data'}"]
    message = fails_with_one_sentence(*command(tiny_recipe, tmp_path / "new", "meta", *extra)[1:])
    assert words in message
    assert not (tmp_path / "data" / "store").exists()


def test_a_probe_without_strings_is_refused_before_anything_is_written(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_recipe.parent / "data", data)
    (data / "heldout" / "strings.jsonl").write_text("")
    monkeypatch.setattr("dist_metaxlm.training.pretrain.complete_environment", lambda *_: None)
    asked = ("training.probe_interval=4", f"data.directory={data}")
    with pytest.raises(UserError, match="probe_interval 4 needs a language with 10 translations"):
        pretrain(Options("meta", str(tiny_recipe), asked, run_dir=str(tmp_path / "run")), HeldoutProbe, HeldoutLoss)
    assert not (tmp_path / "run").exists()


def test_a_phase_that_is_refused_is_not_set_aside(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "meta").mkdir(parents=True)
    monkeypatch.setattr("dist_metaxlm.training.pretrain.complete_environment", lambda *_: None)
    with pytest.raises(UserError, match="'fr' is not in the token store"):
        pretrain(
            Options(
                "meta", str(tiny_recipe), ("phases.meta.languages=[fr]",), run_dir=str(tmp_path / "run"), resume="never"
            ),
            HeldoutProbe,
            HeldoutLoss,
        )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["meta"]


def test_another_recipe_in_the_same_run_is_refused(undisturbed: Path, tiny_recipe: Path) -> None:
    message = fails_with_one_sentence(*command(tiny_recipe, undisturbed, "meta", "phases.meta.learning_rate.peak=0.5")[1:])
    assert "learning_rate.peak was 0.003, now 0.5" in message


def test_a_second_job_is_refused_on_all_its_ranks(
    tiny_recipe: Path, tmp_path: Path, start_ranks: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    with Lease(tmp_path / "run", "meta"):
        ranks = start_ranks(2, *command(tiny_recipe, tmp_path / "run", "meta"))
        errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "is being written by process" in errors[0]
    assert not any("Traceback" in text for text in errors)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_finished_phase_goes_on_with_another_rate_and_more_steps(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for phase in ("meta", "cross"):
        shutil.copytree(undisturbed / phase, tmp_path / phase)
    cross = Options("cross", str(tiny_recipe), ("training.probe_interval=4",), run_dir=str(tmp_path))
    pretrain(cross, HeldoutProbe, HeldoutLoss)
    assert "warning" not in capsys.readouterr().err
    before, asked = curve(undisturbed, "meta"), ["phases.meta.steps=10", "phases.meta.learning_rate.peak=1e-4"]
    message = fails_with_one_sentence(*command(tiny_recipe, tmp_path, "meta", "--change", "--resume", "6", *asked)[1:])
    assert "step-00000006; give an existing step (4, 8), or --resume auto" in message
    assert (tmp_path / "meta" / "done.json").exists(), "a slip of the finger must not make a finished phase unfinished"
    assert not (tmp_path / "meta" / "changes.jsonl").exists()
    said = run_ranks(2, *command(tiny_recipe, tmp_path, "meta", "--change", "--resume", "4", *asked))
    after = curve(tmp_path, "meta")
    assert [step for step, *_ in after] == [2, 4, 6, 8, 10]
    assert after[:2] == before[:2]
    assert after[3] != before[3]
    assert json.loads((tmp_path / "meta" / "done.json").read_text())["steps"] == 10
    assert "changed from step 4 on: phases.meta.steps was 8, now 10" in said
    message = fails_with_one_sentence(*command(tiny_recipe, tmp_path, "meta", "--change", *asked)[1:])
    assert "is already finished after 10 steps, and the recipe has 10; to train it further with --change, set" in message
    pretrain(cross, HeldoutProbe, HeldoutLoss)
    told = capsys.readouterr()
    assert "phase cross of" in told.out
    assert (
        f"warning: cross of {tmp_path} began with meta's step 8, and meta is now at step 10; `metaxlm pretrain " in told.err
    )
    assert f"--phase cross --resume never --recipe {tiny_recipe} --run_dir {tmp_path} training.probe_in" in told.err


def test_unseen_embeddings_are_reinitialised_and_the_optimiser_carried(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run
) -> None:
    overrides = ["carry_over.unseen_embeddings=reinitialise", "carry_over.optimizer=carry", "carry_over.schedule=continue"]
    shutil.copytree(undisturbed / "meta", tmp_path / "meta")
    run_ranks(2, *command(tiny_recipe, tmp_path, "cross", *overrides))
    report = json.loads((tmp_path / "cross" / "carry_over.json").read_text())
    assert report["embeddings_before"]["seen"] == report["embeddings_after"]["seen"]
    assert report["embeddings_before"]["unseen"] != report["embeddings_after"]["unseen"]
    first = json.loads((tmp_path / "cross" / "metrics.jsonl").read_text().splitlines()[0])
    restarted = json.loads((undisturbed / "cross" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["learning_rate"] != restarted["learning_rate"]
    manifest = json.loads((tmp_path / "cross" / "checkpoints" / "step-00000012" / "manifest.json").read_text())
    assert manifest["adam_step"] == 20


def add_rows(folder: Path, count: int) -> dict[str, torch.Tensor]:
    """Give the embedding of a Hugging Face folder random rows for no token, as XLM-R XL has them; returns these."""
    path, settings = folder / "model.safetensors", folder / "config.json"
    state, more = load_file(path), {}
    for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.bias"):
        more[name] = torch.randn(count, *state[name].shape[1:], generator=torch.Generator().manual_seed(4))
        state[name] = torch.cat([state[name], more[name]])
    save_file(state, path)
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps(content | {"vocab_size": content["vocab_size"] + count}))
    return more


def test_cross_starts_from_an_imported_hugging_face_folder(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run
) -> None:
    convert = ROOT / "launch" / "convert.py"
    run_ranks(1, convert, "export", "--run_dir", undisturbed, "--phase", "meta", "--output", tmp_path / "hf")
    more = add_rows(tmp_path / "hf", 14)
    run_ranks(1, convert, "import", "--input", tmp_path / "hf", "--output", tmp_path / "imported")
    start = ("--init_from", str(tmp_path / "imported"))
    out = run_ranks(2, *command(tiny_recipe, tmp_path / "run", "cross", *start))
    assert "tokenizer" in out
    assert "(equal)" in out
    # The same weights as the run whose meta phase was exported, so the same curve: rows without an id are not candidates.
    assert curve(tmp_path / "run", "cross") == curve(undisturbed, "cross")
    run_ranks(1, convert, "export", "--run_dir", tmp_path / "run", "--phase", "cross", "--output", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name][-14:], rows) for name, rows in more.items())
    message = fails_with_one_sentence(*command(tiny_recipe, tmp_path / "other", "cross", *start, "model.ffn=128")[1:])
    assert "set model.ffn=64" in message
    assert not (tmp_path / "other").exists(), "the folder is that of a recipe that was refused"


def test_deepspeed_launcher_with_two_ranks(undisturbed: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    # not the launcher's usual port, which the README's commands take in the other worker
    program = Path(sys.executable).with_name("deepspeed")
    launcher = [str(program), "--num_accelerators", "2", "--master_port", str(free_port())]
    result = subprocess.run(
        [*launcher, *command(tiny_recipe, tmp_path, "meta", *NO_PROBE)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=180,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert curve(tmp_path, "meta") == curve(undisturbed, "meta"), "probes changed the training"
    assert "probe" not in (tmp_path / "meta" / "metrics.jsonl").read_text()
    result = subprocess.run(
        [*launcher, *command(tiny_recipe, tmp_path, "meta", "sead=1")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=180,
        check=False,
    )
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert "did you mean seed" in result.stderr


XLCO = (
    "phases.cross.objectives=[{name: mlm, batch_tokens: 256}, "
    "{name: xlco, pairs: 16, queue: 20, layer: 1, momentum: 0.9, max_tokens: 14}]",
    "phases.cross.steps=6",
    "training.checkpoint_interval=2",
    "training.keep_checkpoints=9",
)


def everything(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint of cross."""
    files = sorted((run / "cross" / "checkpoints" / "step-00000006").glob("*.safetensors"))
    return {f"{path.name.split('-')[0]}.{name}": tensor for path in files for name, tensor in load_file(path).items()}


def test_xlco_in_cross_and_resumed_in_another_layout(
    undisturbed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Run
) -> None:
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    shutil.copytree(undisturbed / "meta", whole / "meta")
    run_ranks(1, *command(tiny_recipe, whole, "cross", *XLCO, "parallel.zero_stage=0", "parallel.micro_batch_tokens=64"))
    assert all(set(losses) == {"mlm", "xlco"} for _, _, losses in curve(whole, "cross"))
    name, folder = "blocks.0.mlp.up.weight", whole / "cross" / "checkpoints" / "step-00000002"
    early, carried = load_file(folder / "momentum-00000.safetensors")[name], load_weights(whole, "meta")[1][name]
    drawn = initial_values(name, carried.shape, 3, 0.02)
    assert (early - carried).norm() < 0.4 * (early - drawn).norm(), "it starts from what meta has learnt"
    shutil.copytree(whole, moved)
    (moved / "cross" / "done.json").unlink()
    run_ranks(2, *command(tiny_recipe, moved, "cross", "--resume", "2", *XLCO))
    for (step, _, losses), (expected_step, _, expected) in zip(curve(moved, "cross"), curve(whole, "cross"), strict=True):
        assert step == expected_step
        assert losses == pytest.approx(expected, rel=1e-5)
    ours, expected = everything(moved), everything(whole)
    assert (
        {
            "objectives.objectives.xlco.projection.weight",
            "momentum.queue",
            "momentum.embedding.tokens.weight",
            "progress.xlco.texts",
            "moments.exp_avg.objectives.xlco.projection.weight",
        }
        < set(expected)
        == set(ours)
    )
    assert not any(name.startswith(("momentum.blocks.1", "momentum.head")) for name in expected), "it ends at the layer"
    assert int(ours["progress.xlco.enqueued"]) == 6 * 8
    assert torch.equal(ours["progress.xlco.texts"], expected["progress.xlco.texts"])
    torch.testing.assert_close(ours["momentum.queue"], expected["momentum.queue"], rtol=1e-3, atol=1e-4)
    assert "objectives.xlco.projection.weight" not in load_weights(whole, "cross")[1], "the weights are the encoder's"


def test_a_rank_hears_ctrl_c_under_a_launcher_that_is_deaf_to_it() -> None:
    """The Makefile has `trap '' INT` before `deepspeed`, which then waits for the save; what it starts inherits that."""
    assert "LAUNCH = trap '' INT; " in (ROOT / "Makefile").read_text(encoding="utf-8")
    code = (
        "import signal, subprocess, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "sys.exit(subprocess.run([sys.executable, '-c', sys.argv[1]], check=False).returncode)"
    )
    script = (
        f"import os, runpy, signal, sys\nsys.argv = ['pretrain.py', '--phase', 'mata']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit: os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, timeout=60, check=False)
    assert "KeyboardInterrupt" in result.stderr
