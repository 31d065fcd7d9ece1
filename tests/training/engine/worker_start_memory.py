"""Host memory and bits of a model built over the ranks started; every rank writes a file. See test_start_memory.py."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_metaxlm.deepspeed_adapter.parameter_shards import cut_parameters, part_shape
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.parallel.groups import groups
from dist_metaxlm.parallel.process_group import process_group
from dist_metaxlm.parallel.topology import detect_topology
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.training.engine.engine import DTYPES, engine_config, parameter_groups
from dist_metaxlm.training.engine.model import build_model

CPU = torch.device("cpu")


def anonymous() -> int:
    """Bytes of this process's memory that are not a file's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def peak(action: Callable[[], Any]) -> tuple[int, Any]:
    """Most bytes that `action` held at a time, and its result."""
    before, most, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], anonymous() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = action()
    finally:
        done.set()
        watcher.join()
    return most[0], result


def digest(piece: torch.Tensor) -> str:
    """SHA-256 of the bits of a tensor."""
    return hashlib.sha256(piece.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def main(recipe_name: str, output: str, *overrides: str) -> None:
    recipe = load_recipe(recipe_name, list(overrides))
    phase, topology = recipe.phases["joint"], detect_topology()
    with process_group(topology, CPU, recipe.parallel.tensor):
        place, dtype = groups(), DTYPES[recipe.training.precision]
        cut = cut_parameters(engine_config(recipe, CPU, place.data_size))
        assert cut is not None
        cut(torch.nn.Parameter(torch.zeros(2, dtype=dtype)))  # DeepSpeed's own buffers are not what is measured

        def built() -> Any:
            model = build_model(recipe, phase)
            model.encoder.materialise(dtype, CPU, cut)
            return model

        deferred, model = peak(built)
        whole, reference = peak(lambda: Encoder(recipe.model, recipe.seed, model.encoder.shard))
        equal = []
        for ours, theirs in zip(model.encoder.parameters(), reference.parameters(), strict=True):
            pieces = dist.get_world_size(ours.ds_process_group)
            flat = theirs.detach().to(dtype).flatten()
            padded = torch.nn.functional.pad(flat, (0, -flat.numel() % pieces))
            expected = padded.chunk(pieces)[dist.get_rank(ours.ds_process_group)]
            equal.append(digest(ours.ds_tensor) == digest(expected))
        sizes = [parameter.numel() for parameter in reference.parameters()]
        config = recipe.optimizer
        ours, theirs = (
            [[part_shape(p) for p in group["params"]] for group in parameter_groups(each, config)]
            for each in (model.encoder, reference)
        )
        equal.append(ours == theirs)
        result = {"deferred": deferred, "whole": whole, "equal": all(equal), "sizes": sizes, "ranks": place.data_size}
        Path(f"{output}.{topology.rank}").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
