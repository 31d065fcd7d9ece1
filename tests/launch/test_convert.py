"""launch/convert.py as people call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import sentencepiece
from safetensors.torch import load_file

from dist_metaxlm.interop.folders import export_folder
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.recipe.schema import ModelConfig

LINES = ["the cat sat on the mat", "der Hund lief durch den Garten", "le chat dort sur la chaise", "кошка сидит на столе"]
ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "launch/convert.py"), *arguments], capture_output=True, text=True,
                          check=False)


def test_import_writes_weights_and_says_what_they_are(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 10), model_prefix=str(tmp_path / "t"), vocab_size=330,
        hard_vocab_limit=False, byte_fallback=True, bos_id=0, pad_id=1, eos_id=2, unk_id=3, minloglevel=2)
    size = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model")).get_piece_size() + 1
    config = ModelConfig(layers=1, hidden=8, heads=2, ffn=16, vocab_size=size, max_positions=16)
    encoder = Encoder(config)
    export_folder(encoder.state_dict(), config, tmp_path / "t.model", tmp_path / "hf")
    done = run("import", "--input", str(tmp_path / "hf"), "--output", str(tmp_path / "ours"), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["parameters"] == sum(parameter.numel() for parameter in encoder.parameters())
    assert set(load_file(tmp_path / "ours/model.safetensors")) == set(encoder.state_dict())
    again = run("import", "--input", str(tmp_path / "hf"), "--output", str(tmp_path / "ours"))
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_mistakes_are_one_sentence_and_exit_2(tmp_path):
    for arguments in (("import", "--input", str(tmp_path), "--output", str(tmp_path / "out")),
                      ("export", "--run_dir", str(tmp_path), "--phase", "cross", "--output", str(tmp_path / "out"))):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()
