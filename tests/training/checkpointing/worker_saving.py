"""Ranks of test_checkpoint_saving.py: save step 1, then save step 2 with what MODE says going wrong.

`kill`: the writing of step 2 stops in the middle of a file, beside training, until somebody ends the process.
`fail`: the disk of rank 1 is full at step 2; prints what each rank is told. Then a byte of step 1 is damaged: which ranks
still take it?
"""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from saving_engine import small_engine, update

from dist_metaxlm.storage import tensor_file
from dist_metaxlm.training.checkpointing.checkpoint import _share_of_node, newest_checkpoint
from dist_metaxlm.training.checkpointing.saving import CheckpointSaver

mode, root = sys.argv[1], Path(sys.argv[2])
append = tensor_file.TensorFile.append


def stop_in_the_middle(file: tensor_file.TensorFile, tensor: torch.Tensor) -> None:
    append(file, tensor)
    if len(file._left) == 2:
        (root / "in the middle").touch()
        time.sleep(600)


def disk_full(file: tensor_file.TensorFile, tensor: torch.Tensor) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")


dist.init_process_group("gloo")
engine, me = small_engine(), dist.get_rank()
if mode == "fail":
    print("shares:", _share_of_node("one"), _share_of_node(f"node {me}"))
try:
    with CheckpointSaver(root, engine, 3, background=True) as saver:
        for step in (1, 2):
            if step == 2 and mode == "kill":
                saver.wait()
                tensor_file.TensorFile.append = stop_in_the_middle
            if step == 2 and mode == "fail" and me == 1:
                saver.wait()
                tensor_file.TensorFile.append = disk_full
            update(engine)
            saver.save({"step": step}, {"seen": torch.ones(3)})
        update(engine)
        print("training goes on")
        while mode == "fail":
            saver.check(torch.device("cpu"))
            time.sleep(0.01)
except OSError as error:
    print(f"rank {me}: {error}")
if mode == "fail":
    found = newest_checkpoint(root)
    print(f"newest: {found and found.step}")
    dist.barrier()
    victim = root / "step-00000001" / f"weights-0000{1 - me}.safetensors"
    if me == 0:
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
    dist.barrier()
    print(f"damaged: {newest_checkpoint(root)}")
dist.destroy_process_group()
