"""Tensors read one at a time, or by rows; files that are not what they say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop import tensor_source
from dist_metaxlm.interop.tensor_source import FileTensors, HeldTensors, row_blocks, same_tensor

STATE = {
    "matrix": torch.randn(37, 5, generator=torch.Generator().manual_seed(1)),
    "vector": torch.arange(11, dtype=torch.float32),
    "half": torch.linspace(-3, 3, 12).to(torch.bfloat16).view(4, 3),
    "cube": torch.randn(6, 2, 3).half(),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def path(tmp_path):
    save_file(STATE, tmp_path / "a.safetensors", metadata={"format": "pt"})
    return tmp_path / "a.safetensors"


@pytest.fixture(params=["file", "held"])
def source(request, path):
    return FileTensors([path]) if request.param == "file" else HeldTensors(STATE)


def test_tensors_and_rows(source):
    assert set(source.keys()) == set(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(source.read(name), tensor)
        assert (source.spec(name).shape, source.spec(name).dtype) == (tensor.shape, tensor.dtype)
        assert source.spec(name).device.type == "meta"
        assert torch.equal(source.read(name, 1, 3), tensor[1:3])
        assert torch.equal(source.read(name, 2), tensor[2:])


def test_blocks_put_together_are_the_tensor(source, monkeypatch):
    monkeypatch.setattr(tensor_source, "BLOCK_BYTES", 64)
    blocks = list(row_blocks(source, "matrix"))
    assert [first for first, _ in blocks] == list(range(0, 37, 3))
    assert torch.equal(torch.cat([rows for _, rows in blocks]), STATE["matrix"])
    assert torch.equal(torch.cat([rows for _, rows in row_blocks(source, "empty")]), STATE["empty"])


def test_comparison_looks_at_every_block(monkeypatch):
    monkeypatch.setattr(tensor_source, "BLOCK_BYTES", 64)
    other = STATE["matrix"].clone()
    source = HeldTensors({"a": STATE["matrix"], "b": other, "c": STATE["matrix"].bfloat16(), "d": STATE["matrix"][:36]})
    assert same_tensor(source, "a", "b")
    assert not same_tensor(source, "a", "c")
    assert not same_tensor(source, "a", "d")
    other[36, 4] += 1
    assert not same_tensor(source, "a", "b")


def test_a_mapping_that_reads_when_asked(path):
    tensors = FileTensors([path])
    assert len(tensors) == len(STATE)
    assert torch.equal(tensors["vector"], STATE["vector"])
    path.write_bytes(b"")  # what follows needs no data
    assert "matrix" in tensors
    assert "other" not in tensors
    assert tensors.path("matrix") == path
    assert tensors.spec("cube").shape == (6, 2, 3)


@pytest.mark.parametrize(
    "damage",
    ["short", "long", "empty", "header", "places", "shape", "gap", "negative", "overlap", "list", "length", "depth"],
)
def test_damaged_files_are_refused_before_a_tensor_is_read(damage, path):
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    if damage == "places":
        header["matrix"]["data_offsets"][1] += 10**9
    if damage == "shape":
        header["vector"]["shape"] = [10]
    if damage == "negative":
        header["vector"]["shape"] = [-11]
    if damage == "gap":
        del header["vector"]
    if damage == "overlap":
        header["cube"] = header["half"]
    text = b"[" * 10**5 if damage == "depth" else json.dumps([header] if damage == "list" else header).encode()
    path.write_bytes(
        {
            "short": whole[:-1],
            "long": whole + b"\0",
            "empty": b"",
            "header": whole[:20],
            "length": b"\xff" * 8 + whole[8:],
        }.get(damage, len(text).to_bytes(8, "little") + text + whole[8 + length :])
    )
    with pytest.raises(UserError, match=r"a\.safetensors is damaged or not a safetensors file"):
        FileTensors([path])


def test_what_happens_to_a_file_after_it_was_opened_is_noticed(path):
    tensors = FileTensors([path])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="became shorter"):
        print([tensors.read(name) for name in STATE])


def test_a_name_in_two_files_and_quantised_tensors(path, tmp_path):
    save_file({"vector": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="both hold vector"):
        FileTensors([path, tmp_path / "b.safetensors"])
    save_file({"small": torch.zeros(3, dtype=torch.int8)}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="has type I8"):
        FileTensors([tmp_path / "c.safetensors"]).read("small")
