"""Routes of pieces to their writers, the files they are written to, and how these are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dist_metaxlm.storage.digest import file_digest
from dist_metaxlm.storage.tensor_file import TensorFile, TensorsOnDisk
from dist_metaxlm.training.checkpointing.gather_plan import GatherStep, LocalShard, plan_gather
from dist_metaxlm.training.checkpointing.manifest import DamagedCheckpoint, verify_manifest, write_manifest


def test_whole_copies_are_shared_by_size() -> None:
    names, elements = ["a", "b", "c", "d"], [100, 30, 40, 30]
    held = {rank: [LocalShard(0, 0, size) for size in elements] for rank in (4, 5)}
    routes = plan_gather(names, elements, held)
    assert [route.writer for route in routes] == [4, 5, 5, 5]
    assert routes[1] == GatherStep(5, ((5, LocalShard(0, 0, 30)),)), "nobody sends what the writer has itself"


def test_shards_go_to_the_rank_that_has_most() -> None:
    # ZeRO-1 lays parameters end to end and cuts the whole: "b" is on both ranks.
    held = {
        0: [LocalShard(0, 0, 10), LocalShard(0, 0, 2), LocalShard(0, 0, 0)],
        1: [LocalShard(0, 0, 0), LocalShard(0, 2, 8), LocalShard(0, 0, 4)],
    }
    routes = plan_gather(["a", "b", "c"], [10, 10, 4], held)
    assert [route.writer for route in routes] == [0, 1, 1]
    assert routes[1].sources == ((0, LocalShard(0, 0, 2)), (1, LocalShard(0, 2, 8)))


def test_tensor_parts_come_from_one_data_rank_each() -> None:
    # Tensor ranks 0 and 1 on two data-parallel copies without ZeRO; a norm is whole on all four.
    part = {rank: rank % 2 for rank in range(4)}
    held = {rank: [LocalShard(part[rank], 0, 8), LocalShard(part[rank], 0, 4)] for rank in range(4)}
    routes = plan_gather(["blocks.0.mlp.up.weight", "blocks.0.norm.weight"], [8, 4], held)
    assert [place for place, _ in routes[0].sources] == [0, 1]
    assert [holding.part for _, holding in routes[0].sources] == [0, 1]
    assert routes[1] == GatherStep(1, ((1, LocalShard(1, 0, 4)),))


def test_tensor_parts_in_shards() -> None:
    held = {0: [LocalShard(0, 0, 4)], 1: [LocalShard(1, 0, 4)], 2: [LocalShard(0, 4, 4)], 3: [LocalShard(1, 4, 4)]}
    cut = plan_gather(["embedding.tokens.weight"], [8], held)[0]
    assert [(place, holding.part, holding.start) for place, holding in cut.sources] == [
        (0, 0, 0),
        (2, 0, 4),
        (1, 1, 0),
        (3, 1, 4),
    ]
    same = plan_gather(["blocks.0.norm.weight"], [8], held)[0]
    assert [place for place, _ in same.sources] == [0, 2]


def test_a_hole_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not whole"):
        plan_gather(["a"], [10], {0: [LocalShard(0, 0, 4)], 1: [LocalShard(0, 5, 5)]})


@pytest.fixture()
def written(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    tensors = {
        "weight": torch.randn(7, 5),
        "ключ": torch.randn(3),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
    }
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    sealed = {}
    for file_name, names in (
        ("weights-00000.safetensors", list(tensors)[:3]),
        ("weights-00001.safetensors", list(tensors)[3:]),
    ):
        file = TensorFile(folder / file_name, {name: tensors[name].shape for name in names})
        for name in names:
            file.append(tensors[name])
        sealed[file_name] = file.finalize()
    write_manifest(folder, {"step": 1}, sealed)
    return folder, tensors


def test_the_library_reads_what_is_written(written: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = written
    read = load_file(folder / "weights-00000.safetensors") | load_file(folder / "weights-00001.safetensors")
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_the_manifest_says_what_lies_on_the_disk(written: tuple[Path, dict[str, torch.Tensor]]) -> None:
    facts = verify_manifest(written[0])
    for name, sealed in facts["files"].items():
        assert sealed == {"bytes": (written[0] / name).stat().st_size, "sha256": file_digest(written[0] / name)}


def test_tensors_are_read_when_asked_for(written: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, tensors = written
    found = TensorsOnDisk([folder / "weights-00000.safetensors", folder / "weights-00001.safetensors"])
    assert set(found) == set(tensors)
    assert len(found) == 5
    assert torch.equal(found["turned"], tensors["turned"])
    before = file_digest(folder / "weights-00000.safetensors")
    found["weight"].zero_()
    assert file_digest(folder / "weights-00000.safetensors") == before, "a view must not write to the file"
    with pytest.raises(KeyError):
        found["weights"]


def test_a_file_is_never_written_over(written: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(FileExistsError):
        TensorFile(written[0] / "weights-00000.safetensors", {})


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("victim", ["weights-00000.safetensors", "weights-00001.safetensors"])
def test_exactly_one_of_the_sharing_ranks_finds_a_flipped_bit(
    written: tuple[Path, dict[str, torch.Tensor]], parts: int, victim: str
) -> None:
    content = bytearray((written[0] / victim).read_bytes())
    content[-3] ^= 4
    (written[0] / victim).write_bytes(content)
    found = []
    for part in range(parts):
        try:
            verify_manifest(written[0], part, parts)
        except DamagedCheckpoint as error:
            found.append(str(error))
    assert len(found) == 1
    assert victim in found[0]
    assert "SHA-256" in found[0]


@pytest.mark.parametrize("part", [0, 1, 2])
def test_every_sharing_rank_checks_names_and_sizes(written: tuple[Path, dict[str, torch.Tensor]], part: int) -> None:
    (written[0] / "weights-00001.safetensors").write_bytes(b"short")
    with pytest.raises(DamagedCheckpoint, match="5 bytes instead"):
        verify_manifest(written[0], part, 3)
