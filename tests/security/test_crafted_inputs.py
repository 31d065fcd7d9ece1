"""No input from others runs code: each crafted input is refused in one sentence, or read without executing anything.

Every case answers `y` to any question on standard input, and checks afterwards that the canary does not exist.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.folders import import_run
from dist_metaxlm.launching.hostfile import read_hostfile
from dist_metaxlm.preparation.readers.dispatch import documents
from dist_metaxlm.preparation.readers.tmx import tmx_pairs
from dist_metaxlm.recipe.data import ReadingConfig
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.checkpointing.manifest import DamagedCheckpoint, verify_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).parent))
import hostile

REMOTE = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForMaskedLM": "evil.Model"}
TOKENS = {"AutoTokenizer": ["evil.Tokens", "evil.Tokens"]}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that must not exist when the test ends; standard input says yes to everything."""
    place = tmp_path / "canary"
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield place
    assert not place.exists(), "the input has run code"


@pytest.fixture
def good(tiny_recipe: Path, tmp_path: Path) -> Path:
    """A correct model folder with its tokenizer."""
    recipe = load_recipe(tiny_recipe)
    return hostile.model_folder(tmp_path / "model", Path(recipe.data.directory) / "tokenizer.model")


def opened(folder: Path) -> None:
    from dist_metaxlm.evaluation.tasks.text_encoder import TextEncoder

    assert TextEncoder(folder).embed(["hello"]).isfinite().all()


def imported(folder: Path) -> None:
    import_run(folder, folder.with_name("imported"))


def one_sentence(action: Callable[[], object], words: str, kind: type[Exception] = UserError) -> None:
    with pytest.raises(kind, match=words) as failure:
        action()
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickled_weights_are_refused(good: Path, canary: Path, name: str) -> None:
    hostile.without_weights(good)
    hostile.torch_file(good / name, canary)
    for action in (opened, imported):
        one_sentence(lambda action=action: action(good), r"only \.bin or \.pt weights, which can run code")


def test_pickles_beside_the_weights_are_never_opened(good: Path, canary: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "scaler.pt"):
        hostile.torch_file(good / name, canary)
    hostile.numpy_file(good / "vectors.npy", canary)
    opened(good)
    imported(good)


def test_a_pickle_named_safetensors_is_refused(good: Path, canary: Path) -> None:
    hostile.torch_file(good / "model.safetensors", canary)
    one_sentence(lambda: imported(good), "not a safetensors file")
    one_sentence(lambda: opened(good), "cannot be opened by transformers")


def test_code_of_a_folder_is_refused_without_a_question(
    good: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile.code(good / "evil.py", canary)
    hostile.change_json(good / "config.json", model_type="strange", auto_map=REMOTE)
    one_sentence(lambda: opened(good), "needs code of its own .* is never run")
    one_sentence(lambda: imported(good), "strange")
    output = capsys.readouterr()
    assert "[y/N]" not in output.out + output.err


def test_code_of_a_tokenizer_is_never_run(good: Path, canary: Path) -> None:
    hostile.code(good / "evil.py", canary)
    hostile.change_json(good / "tokenizer_config.json", tokenizer_class="Tokens", auto_map=TOKENS)
    opened(good)  # tokenizer.json alone describes it


def test_code_that_a_known_architecture_names_is_ignored(good: Path, canary: Path) -> None:
    hostile.code(good / "evil.py", canary)
    hostile.change_json(good / "config.json", auto_map=REMOTE)
    opened(good)
    imported(good)


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_that_a_configuration_names_is_refused(good: Path, canary: Path, field: str) -> None:
    hostile.change_json(good / "config.json", text_config={field: {"": "paged|evil/kernel"}})
    for action in (opened, imported):
        one_sentence(lambda action=action: action(good), "names the kernel .* is never run")


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/outside.safetensors", "a/../../x.safetensors"])
def test_an_index_of_weights_cannot_leave_its_folder(good: Path, canary: Path, place: str) -> None:
    hostile.plain_tensors(good.parent / "outside.safetensors")
    hostile.change_json(good / "model.safetensors.index.json", weight_map={"x": place})
    one_sentence(lambda: imported(good), "lacks the file")


@pytest.mark.parametrize("name", ["tokenizer.model", "sentencepiece.bpe.model"])
def test_a_pickle_as_tokenizer_is_refused(tmp_path: Path, canary: Path, name: str) -> None:
    from dist_metaxlm.data.tokenizer import Tokenizer

    (tmp_path / name).write_bytes(hostile.pickled(canary))
    one_sentence(lambda: Tokenizer.load(tmp_path / name), "not a SentencePiece model")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/module:evil"])
def test_tags_in_a_recipe_are_refused(tmp_path: Path, canary: Path, tag: str) -> None:
    value = f'["touch {canary}"]' if "apply" in tag else '""'
    (tmp_path / "recipe.yaml").write_text(f"name: x\nseed: {tag} {value}\n")
    one_sentence(lambda: load_recipe(tmp_path / "recipe.yaml"), "is not YAML")
    one_sentence(lambda: load_recipe("quickstart", [f"seed={tag} {value}"]), "seed")


def test_aliases_in_a_recipe_do_not_blow_up(tmp_path: Path) -> None:
    levels = "abcdefghij"
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{here}: &{here} [{', '.join([f'*{before}'] * 9)}]\n" for before, here in itertools.pairwise(levels)
    )
    (tmp_path / "recipe.yaml").write_text(text)
    one_sentence(lambda: load_recipe(tmp_path / "recipe.yaml"), "recipe")


def checkpoint(folder: Path) -> Path:
    """A correct checkpoint folder with one file."""
    from dist_metaxlm.storage.tensor_file import FinishedFile

    folder.mkdir()
    hostile.plain_tensors(folder / "weights-00000.safetensors")
    from dist_metaxlm.storage.digest import file_digest

    path = folder / "weights-00000.safetensors"
    write_manifest(folder, {"step": 1}, {path.name: FinishedFile(path.stat().st_size, file_digest(path))})
    verify_manifest(folder)
    return folder


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/../../secret", ".metadata", "mp_rank_00_model_states.pt"])
def test_a_checkpoint_holds_what_its_manifest_lists_and_nothing_else(tmp_path: Path, canary: Path, name: str) -> None:
    folder = checkpoint(tmp_path / "step-00000001")
    if "/" not in name:  # what DCP and DeepSpeed write: a pickle beside the tensors
        hostile.torch_file(folder / name, canary)
        one_sentence(lambda: verify_manifest(folder), "which its manifest does not list", DamagedCheckpoint)
        return
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    manifest["format"] = 1
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    one_sentence(lambda: verify_manifest(folder), "not a plain file of this folder", DamagedCheckpoint)


def test_a_link_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "step-00000001")
    (folder / "weights-00000.safetensors").rename(tmp_path / "elsewhere")
    (folder / "weights-00000.safetensors").symlink_to(tmp_path / "elsewhere")
    one_sentence(lambda: verify_manifest(folder), "not a plain file of this folder", DamagedCheckpoint)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "a/../../b.bin"])
def test_a_token_store_cannot_leave_its_folder(tiny_recipe: Path, tmp_path: Path, name: str) -> None:
    from dist_metaxlm.data.tokens.store import TokenStore

    store = tmp_path / "store"
    shutil.copytree(Path(load_recipe(tiny_recipe).data.directory) / "store", store)
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["files"][name] = next(iter(manifest["files"].values()))
    (store / "manifest.json").write_text(json.dumps(manifest))
    one_sentence(lambda: TokenStore.open(store), "no file inside")


def test_pickles_in_a_token_store_are_not_read_as_tokens(tiny_recipe: Path, tmp_path: Path, canary: Path) -> None:
    from dist_metaxlm.data.tokens.store import TokenStore

    store = tmp_path / "store"
    shutil.copytree(Path(load_recipe(tiny_recipe).data.directory) / "store", store)
    hostile.torch_file(store / "tokens.pt", canary)
    hostile.numpy_file(store / "index.npy", canary)
    TokenStore.open(store)  # neither is listed, so neither is opened
    hostile.numpy_file(next(store.rglob("*.idx")), canary)
    one_sentence(lambda: TokenStore.open(store), "bytes instead of|damaged")


@pytest.mark.parametrize(
    "host", ["a;touch CANARY", "$(touch CANARY)", "`touch CANARY`", "-oProxyCommand=touch", "a|b", "a&b"]
)
def test_shell_syntax_in_a_hostfile_is_refused(tmp_path: Path, canary: Path, host: str) -> None:
    (tmp_path / "hosts").write_text(host.replace("CANARY", str(canary)).replace(" ", "${IFS}") + " slots=1\n")
    one_sentence(lambda: read_hostfile(tmp_path / "hosts"), "host name|option")


def test_a_deepspeed_file_is_json_only(tmp_path: Path, canary: Path) -> None:
    from dist_metaxlm.deepspeed_adapter.config_files import read_file

    file = tmp_path / "ds.json"
    file.write_bytes(hostile.pickled(canary))
    one_sentence(lambda: read_file(str(file)), "not JSON")
    file.write_text(json.dumps({"optimizer": {"type": f"__import__('os').system('touch {canary}')"}}))
    one_sentence(lambda: read_file(str(file)), "optimizer")


ENTITIES = '<!DOCTYPE tmx [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {here} "{f"&{before};" * 10}">' for before, here in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize("doctype", [ENTITIES, '<!DOCTYPE tmx [<!ENTITY j SYSTEM "file:///etc/passwd">'])
def test_entities_in_tmx_are_refused(tmp_path: Path, doctype: str) -> None:
    unit = '<tu><tuv xml:lang="en"><seg>&j;</seg></tuv><tuv xml:lang="de"><seg>x</seg></tuv></tu>'
    (tmp_path / "a.tmx").write_text(f'<?xml version="1.0"?>{doctype}]><tmx version="1.4"><body>{unit}</body></tmx>')
    one_sentence(lambda: list(tmx_pairs(tmp_path / "a.tmx", ["en", "de"], 1000)), "defines XML entities")


def test_a_compressed_bomb_costs_no_memory(tmp_path: Path) -> None:
    hostile.gzip_bomb(tmp_path / "a.txt.gz", 120)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one_sentence(
        lambda: list(documents([tmp_path / "a.txt.gz"], ReadingConfig(max_line_characters=100_000))),
        "has more than .* characters",
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"


def test_a_member_of_an_archive_cannot_be_written_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../outside.txt", "a line of text\n")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = {str(path) for path in tmp_path.rglob("*")}
    from dist_metaxlm.preparation.readers.paths import expand

    assert list(documents(expand([f"zip://../outside.txt::{tmp_path}/a.zip"], "data.languages"))) == [["a line of text"]]
    assert {str(path) for path in tmp_path.rglob("*")} == before  # read as a stream, nothing unpacked


def test_a_failpoint_is_a_word_of_a_list(canary: Path) -> None:
    from dist_metaxlm import failpoints

    one_sentence(lambda: failpoints.plant(0, f"step:rank0:$(touch {canary})"), "has not the form")
    assert os.environ.get(failpoints.VARIABLE) is None
