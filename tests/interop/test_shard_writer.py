"""Files written piece by piece are those that safetensors and huggingface_hub would have written."""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.shard_writer import INDEX, WEIGHTS, ShardWriter

STATE = {
    "odd": torch.arange(3).bfloat16(),
    "wide": torch.randn(4, 6),
    "tall": torch.randn(50, 3),
    "small": torch.randn(2, 2).half(),
}
SPECS = {name: tensor.to("meta") for name, tensor in STATE.items()}


def test_rows_in_any_order_make_the_file(tmp_path):
    writer = ShardWriter(tmp_path, SPECS)
    for name in ("small", "wide", "odd"):
        writer.write(name, STATE[name])
    for first in (40, 0, 20):
        writer.write("tall", STATE["tall"][first : first + 20], first)
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    loaded = load_file(tmp_path / WEIGHTS)
    assert set(loaded) == set(STATE)
    assert all(torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in STATE.items())
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_tensor_begins_at_a_multiple_of_its_element(tmp_path):
    ShardWriter(tmp_path, SPECS)
    raw = (tmp_path / WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert all(header[name]["data_offsets"][0] % tensor.itemsize == 0 for name, tensor in STATE.items())


def test_shards_and_index_are_those_of_huggingface_hub(tmp_path):
    from huggingface_hub import save_torch_state_dict

    (tmp_path / "theirs").mkdir()
    save_torch_state_dict(STATE, tmp_path / "theirs", max_shard_size=300)
    (tmp_path / "ours").mkdir()
    writer = ShardWriter(tmp_path / "ours", SPECS, 300)
    for name, tensor in STATE.items():
        writer.write(name, tensor)
    writer.finish()
    files = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert len(files) > 2
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == files
    ours, theirs = (json.loads((tmp_path / name / INDEX).read_text()) for name in ("ours", "theirs"))
    assert ours["weight_map"] == theirs["weight_map"]
    assert ours["metadata"]["total_size"] == sum(tensor.nbytes for tensor in STATE.values())
    for file in files[:-1]:
        a, b = load_file(tmp_path / "ours" / file), load_file(tmp_path / "theirs" / file)
        assert set(a) == set(b)
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_left_out_is_noticed(tmp_path):
    writer = ShardWriter(tmp_path, SPECS)
    writer.write("tall", STATE["tall"][:20])
    with pytest.raises(RuntimeError, match="4 tensors"):
        writer.finish()


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="bytes needed") as caught:
        ShardWriter(tmp_path, {"huge": torch.empty(2**60, device="meta")})
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["much", "5", "nanGB", "infGB"])
def test_sizes_that_are_none(size, tmp_path):
    with pytest.raises(UserError, match="is not a size"):
        ShardWriter(tmp_path, SPECS, size)
