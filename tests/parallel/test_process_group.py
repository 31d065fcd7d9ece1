"""What a rank does on a machine with CUDA devices, as far as it can be asked where there are none."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel import environment
from dist_metaxlm.parallel.deepspeed_import import import_deepspeed
from dist_metaxlm.parallel.environment import complete_environment
from dist_metaxlm.parallel.process_group import check_devices, stay_on_device
from dist_metaxlm.parallel.topology import Topology


def with_devices(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("launcher", "devices", "words"),
    [
        ("deepspeed", 2, "4 ranks on .*, where a rank sees 2 CUDA devices: .* start 2 .deepspeed --num_accelerators 2"),
        ("torchrun", 1, "where a rank sees 1 CUDA device: .* torchrun --nproc_per_node 1"),
        ("slurm", 1, "every rank must see all devices of its node .* leave out --gpus-per-task"),
    ],
)
def test_ranks_without_a_device_are_refused(
    launcher: str, devices: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_devices(monkeypatch, devices)
    with pytest.raises(UserError, match=words):
        check_devices(Topology(0, 4, 0, 4, launcher))


@pytest.mark.parametrize(("launcher", "devices"), [("deepspeed", 4), ("deepspeed", 8), ("torchrun", 0), ("environment", 2)])
def test_ranks_with_a_device_each_or_without_any_are_taken(
    launcher: str, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`environment` may say nothing of the node's ranks, which then seem to be all of the job's."""
    with_devices(monkeypatch, devices)
    check_devices(Topology(3, 4, 1, 4, launcher))


def test_gloo_and_nccl_both_take_the_way_to_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA, batches, checkpoints and requests to stop are still sent over gloo."""
    monkeypatch.setattr(environment, "interface_towards", lambda host: "eth7")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "CUDA_DEVICE_MAX_CONNECTIONS"):
        monkeypatch.delenv(name, raising=False)
    complete_environment(Topology(0, 2, 0, 1, "torchrun"), cuda=True)
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("eth7", "=eth7")
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ
    complete_environment(Topology(0, 2, 0, 1, "torchrun"), cuda=True, tensor=2)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


def test_a_thread_stays_on_the_device_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stay_on_device() is None  # without CUDA
    with_devices(monkeypatch, 4)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with ThreadPoolExecutor(1, initializer=stay_on_device()) as pool:
        pool.submit(int).result()
    assert chosen == [3]


def test_deepspeed_asks_torch_for_the_memory_of_devices_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of a MIG device has a UUID alone; DeepSpeed takes what is in CUDA_VISIBLE_DEVICES for numbers of NVML."""
    from deepspeed.accelerator import cuda_accelerator

    with_devices(monkeypatch, 1)
    for names, kept in (("0,3", True), ("MIG-41b2", False)):
        monkeypatch.setattr(cuda_accelerator, "pynvml", "NVML")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        import_deepspeed()
        assert (cuda_accelerator.pynvml == "NVML") is kept


def test_auto_is_bf16_only_where_the_device_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from dist_metaxlm.recipe.load import load_recipe
    from dist_metaxlm.training.engine.engine import resolve_precision

    recipe = load_recipe("quickstart", [])
    assert resolve_precision(recipe, torch.device("cpu")) == "fp32"
    for has, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        assert resolve_precision(recipe, torch.device("cuda", 0)) == precision
