"""launch/convert.py as people call it."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tiny_tokenizer import train_tokenizer

from dist_metaxlm.interop.folders import export_folder, read_import
from dist_metaxlm.interop.original import keep_original
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.schema import ModelConfig
from dist_metaxlm.storage.digest import file_digest
from dist_metaxlm.storage.tensor_file import FinishedFile
from dist_metaxlm.training.checkpointing.manifest import write_manifest

LINES = ["the cat sat on the mat", "der Hund lief durch den Garten", "le chat dort sur la chaise", "кошка сидит на столе"]
ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """launch/convert.py with these arguments, in this process: its exit code and what it printed."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "launch/convert.py"), run_name="__main__")
        printed = capsys.readouterr()
        return Done(int(stop.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    train_tokenizer(LINES * 10, folder, 330)
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def config(tokenizer) -> ModelConfig:
    size = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).get_piece_size() + 1
    return ModelConfig(layers=3, hidden=8, heads=2, ffn=16, vocab_size=size, max_positions=128)


@pytest.fixture(scope="module")
def trained(tokenizer, config, tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run whose meta phase has a checkpoint that two ranks wrote, and its weights."""
    run_dir = tmp_path_factory.mktemp("run")
    weights = {name: tensor.detach() for name, tensor in Encoder(config, seed=2).state_dict().items()}
    step = run_dir / "meta/checkpoints/step-00000004"
    step.mkdir(parents=True)
    names = sorted(weights)
    for rank in range(2):
        save_file({name: weights[name].contiguous() for name in names[rank::2]}, step / f"weights-{rank:05d}.safetensors")
        save_file({"exp_avg.x": torch.zeros(1)}, step / f"moments-{rank:05d}.safetensors")
    sealed = {path.name: FinishedFile(path.stat().st_size, file_digest(path)) for path in step.iterdir()}
    write_manifest(step, {"step": 4, "phase": "meta", "tokenizer": file_digest(tokenizer)}, sealed)
    recipe = load_recipe("quickstart", [f"data.directory={tokenizer.parent}"]).model_copy(update={"model": config})
    (run_dir / "meta/recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    return run_dir, weights


def test_an_error_from_a_shell(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "launch/convert.py"),
            "import",
            "--input",
            str(tmp_path),
            "--output",
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_checkpoint_goes_out_in_shards_and_comes_back_bit_for_bit(run, trained, config, tmp_path):
    run_dir, weights = trained
    done = run(
        "export",
        "--run_dir",
        run_dir,
        "--phase",
        "meta",
        "--output",
        tmp_path / "hf",
        "--max_shard_size",
        "0.004MB",
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 1
    done = run("import", "--input", tmp_path / "hf", "--output", tmp_path / "ours", "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["tokenizer"] == str(tmp_path / "ours/tokenizer.model")
    again, imported, tokenizer = read_import(tmp_path / "ours")
    assert again == config
    assert tokenizer == (Path(facts["tokenizer"])).read_bytes()
    assert set(imported) == set(weights)
    assert all(torch.equal(imported[name], tensor) for name, tensor in weights.items())
    assert not list(tmp_path.glob(".*"))


def test_dtype_of_an_export(run, trained, tmp_path):
    run_dir, weights = trained
    done = run("export", "--run_dir", run_dir, "--phase", "meta", "--output", tmp_path / "hf", "--dtype", "bfloat16")
    assert done.code == 0, done.err
    exported = load_file(tmp_path / "hf/model.safetensors")
    assert torch.equal(exported["lm_head.bias"], weights["head.bias"].bfloat16())
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf/config.json").read_text())["dtype"] == "bfloat16"


def test_an_earlier_export_is_replaced_only_by_a_complete_one(run, trained, tmp_path):
    run_dir, _ = trained
    export = ("export", "--run_dir", run_dir, "--phase", "meta", "--output", tmp_path / "hf")
    assert run(*export).code == 0
    (tmp_path / "hf/note.txt").write_text("of the first export")
    assert run(*export, "--overwrite", "--max_shard_size", "none").code == 2
    assert (tmp_path / "hf/note.txt").exists()
    assert run(*export, "--overwrite", "--dtype", "float16").code == 0
    assert not (tmp_path / "hf/note.txt").exists()
    assert {tensor.dtype for tensor in load_file(tmp_path / "hf/model.safetensors").values()} == {torch.float16}


def test_data_that_moved_are_named_and_must_be_those_of_the_run(run, trained, tokenizer, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    recipe = (run_dir / "meta/recipe.yaml").read_text(encoding="utf-8").replace(str(tokenizer.parent), "/old/place")
    (run_dir / "meta/recipe.yaml").write_text(recipe, encoding="utf-8")
    export = ("export", "--run_dir", run_dir, "--phase", "meta", "--output", tmp_path / "out")
    done = run(*export)
    assert (done.code, done.out) == (2, "")
    assert "no tokenizer at /old/place/tokenizer.model" in done.err
    assert "name their folder with --data_directory" in done.err
    (tmp_path / "tokenizer.model").write_bytes(b"another")
    done = run(*export, "--data_directory", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"was trained with tokenizer {file_digest(tokenizer)[:12]}, and {tmp_path}/tokenizer.model is" in done.err
    assert not (tmp_path / "out").exists()
    assert run(*export, "--data_directory", tokenizer.parent).code == 0
    assert (tmp_path / "out/tokenizer.json").is_file()


def test_words_to_fill_are_hidden_before_anything_is_exported(run, trained, tokenizer, tmp_path):
    export = (
        "export",
        "--run_dir",
        trained[0],
        "--phase",
        "meta",
        "--data_directory",
        tmp_path,
        "--output",
        tmp_path / "out",
    )
    shutil.copy(tokenizer, tmp_path)
    for rows, language, words in (
        ((), "en", "no held-out strings at"),
        (({"ru": LINES[3]},), "fr", "--fill_mask fr: there are no held-out"),
    ):
        if rows:
            (tmp_path / "heldout").mkdir()
            (tmp_path / "heldout/strings.jsonl").write_text("\n".join(map(json.dumps, rows)))
        done = run(*export, "--fill_mask", language)
        assert (done.code, done.out) == (2, "")
        assert words in done.err
        assert not (tmp_path / "out").exists()
    done = run(*export, "--fill_mask", "ru", "--json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["fill_mask"]
    assert row["text"].replace("<mask>", row["expected"]) == LINES[3]
    assert json.loads((tmp_path / "out/fill_mask.json").read_text()) == [row]


def test_without_a_sentencepiece_model_only_weights_are_imported_and_one_sentence_says_so(run, config, tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    export_folder(Encoder(config).state_dict(), config, None, tmp_path / "hf")
    settings = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps(settings | {"model_type": "roberta"}))
    ByteLevelBPETokenizer().save(str(tmp_path / "hf/tokenizer.json"))
    done = run("import", "--input", tmp_path / "hf", "--output", tmp_path / "ours")
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].startswith("weights only: the folder has no SentencePiece tokenizer (RoBERTa and ")
    written = ["model.safetensors", "model_config.json", "original"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == written
    assert (tmp_path / "ours/original/tokenizer.json").read_bytes() == (tmp_path / "hf/tokenizer.json").read_bytes()


def test_rows_without_a_token_id_come_back_from_a_trained_phase(run, trained, config, tokenizer, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    padded = config.model_copy(update={"vocab_size": -(-config.vocab_size // 64) * 64})
    export_folder(Encoder(padded).state_dict(), padded, None, tmp_path / "hf")
    shutil.copy(tokenizer, tmp_path / "hf/sentencepiece.bpe.model")
    done = run("import", "--input", tmp_path / "hf", "--output", tmp_path / "ours", "--json")
    assert json.loads(done.out)["model"]["vocab_size"] == config.vocab_size
    keep_original(tmp_path / "ours", run_dir / "meta")
    done = run("export", "--run_dir", run_dir, "--phase", "meta", "--output", tmp_path / "back")
    assert done.code == 0, done.err
    given, back = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    table = "roberta.embeddings.word_embeddings.weight"
    assert torch.equal(back[table][config.vocab_size :], given[table][config.vocab_size :])
    assert torch.equal(back[table][: config.vocab_size], trained[1]["embedding.tokens.weight"])


def test_a_fresh_head_when_asked(run, config, tmp_path):
    export_folder(Encoder(config).state_dict(), config, None, tmp_path / "hf")
    path = tmp_path / "hf/model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith("lm_head.")}, path)
    done = run("import", "--input", tmp_path / "hf", "--output", tmp_path / "ours")
    assert (done.code, done.out) == (2, "")
    assert "give it a fresh head with --fresh_head" in done.err
    assert run("import", "--input", tmp_path / "hf", "--output", tmp_path / "ours", "--fresh_head").code == 0


def test_mistakes_are_one_sentence_and_exit_2(run, trained, config, tmp_path):
    run_dir, _ = trained
    export_folder(Encoder(config).state_dict(), config, None, tmp_path / "hf")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_bytes((tmp_path / "hf/config.json").read_bytes())
    (bad / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    out = ("--output", tmp_path / "out")
    export = ("export", "--run_dir", run_dir, "--phase", "meta")
    for arguments, words in (
        (("import", "--input", bad, *out), "only .bin or .pt weights, which can run code"),
        (("import", "--input", tmp_path, *out), "has no config.json"),
        (("import", "--input", tmp_path / "hf", "--output", tmp_path / "hf"), "is not empty"),
        (("import", "--input", tmp_path / "hf", *out, "--max_shard_size", "big"), "'big' is not a size"),
        (("export", "--run_dir", tmp_path, "--phase", "cross", *out), "no cross phase in"),
        ((*export, "--output", bad), "is not empty"),
        ((*export, "--output", bad, "--overwrite"), "is not an earlier export"),
    ):
        done = run(*arguments)
        assert (done.code, done.out) == (2, ""), done
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
        assert words in done.err
        assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "hf"]


def test_a_model_with_rms_norm_stays_here(run, trained, config, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    recipe = load_recipe(run_dir / "meta/recipe.yaml")
    rms = config.model_copy(update={"family": "modern", "norm": "pre", "norm_type": "rms"})
    (run_dir / "meta/recipe.yaml").write_text(dump_recipe(recipe.model_copy(update={"model": rms})), encoding="utf-8")
    done = run("export", "--run_dir", run_dir, "--phase", "meta", "--output", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: a model with model.norm_type rms cannot go to Hugging Face")
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("damage", ["weights", "moments"])
def test_a_damaged_checkpoint_is_not_exported(damage, run, trained, tmp_path):
    run_dir, _ = trained
    path = run_dir / f"meta/checkpoints/step-00000004/{damage}-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        done = run("export", "--run_dir", run_dir, "--phase", "meta", "--output", tmp_path / "out")
    finally:
        path.write_bytes(whole)
    assert done.code == 2
    assert "does not match the SHA-256" in done.err
    assert "no intact checkpoint" in done.err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the weights."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("told", [True, False])
def test_a_full_disk_ends_with_74_and_nothing_stays(told, run, config, small_disk, tmp_path, monkeypatch):
    big = config.model_copy(update={"hidden": 128})
    export_folder(Encoder(big).state_dict(), big, None, tmp_path / "hf")
    if not told:  # the disk fills up while the conversion runs
        free = os.statvfs(tmp_path)
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free.f_bavail * free.f_frsize})())
    done = run("import", "--input", tmp_path / "hf", "--output", small_disk / "ours")
    assert done.code == 74
    assert "No space left on device" in done.err
    assert not list(small_disk.iterdir())
