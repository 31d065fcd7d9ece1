"""The scaling benchmark: what it counts as communication, which batches weak scaling has, and one real run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dist_metaxlm.benchmarking.scaling.nodes import on_nodes
from dist_metaxlm.benchmarking.scaling.report import plot, table
from dist_metaxlm.benchmarking.scaling.scaling import Experiment, Place, layouts, measure_scaling, reported, run_here
from dist_metaxlm.benchmarking.scaling.worker import RESULT, sent_bytes
from dist_metaxlm.benchmarking.training.trace import covered
from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.topology import Topology
from dist_metaxlm.recipe.load import load_recipe

HERE = Place("ranks", 1, run_here)


def test_overlapping_communication_counts_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0
    assert covered([]) == 0.0


def test_every_layout_runs_once_and_weak_scaling_multiplies_every_batch() -> None:
    jobs = layouts(load_recipe("quickstart"), Experiment("quickstart", ("seed=3",), "cross", (1, 2, 4), 5, 1), HERE)
    assert len(jobs) == 1 + 2 * 3 * 2
    ranks, job = jobs["weak pipeline 4"]
    assert ranks == 4
    grown = load_recipe("quickstart", job["overrides"])
    assert [grown.seed, grown.parallel.pipeline] == [3, 4]
    mlm, tlm, contrast = grown.phases["cross"].objectives
    assert [mlm.batch_tokens, tlm.batch_tokens, contrast.pairs, contrast.group] == [8192, 8192, 768, 192]
    assert jobs["strong tensor 2"][1]["overrides"] == ["seed=3", "parallel.tensor=2"]


def test_one_rank_is_measured_and_drawn(tiny_recipe: Path, tmp_path: Path) -> None:
    result = measure_scaling(Experiment(str(tiny_recipe), (), "joint", (1,), steps=1, repeats=1))
    [row] = result["rows"]
    assert row["tokens_per_step"] == 384
    assert row["speed_up"] == row["efficiency"] == 1.0
    assert row["communication_share"] < 0.2
    assert table(result).count("\n") == 2
    plot(result, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no phase 'later'"):
        measure_scaling(Experiment(str(tiny_recipe), (), "later", (1,), 1, 1))


def test_nodes_are_started_by_the_checked_way_and_their_traffic_is_shown(tiny_recipe: Path, tmp_path: Path) -> None:
    start, hosts, log = tmp_path / "start.py", tmp_path / "hosts", tmp_path / "calls"
    start.write_text(
        "import json, sys\nfrom pathlib import Path\nwords = sys.argv[1:]\n"
        "hosts = Path(words[words.index('--hostfile') + 1]).read_text()\n"
        f"open({str(log)!r}, 'a').write(json.dumps([hosts, *words[words.index('--') + 1:]]) + '\\n')\n"
        f"print('node1: {RESULT}' + json.dumps(dict(tokens_per_step=384, seconds_per_step=1 / len(hosts.split()), "
        "communication_share=0.25, sent_bytes=2e6, busiest_bytes=1e6)))\n"
    )
    hosts.write_text("node1 slots=1\nnode2 slots=1\nnode3 slots=1\n")
    place, counts = on_nodes(str(hosts), "deepspeed", 29500, link_megabits=100, start=[sys.executable, str(start)])
    assert counts == (1, 2, 3)
    result = measure_scaling(Experiment(str(tiny_recipe), (), "joint", (1, 2), 1, 1, ("data", "tensor"), ("strong",)), place)
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert [call[0].count("slots=1") for call in calls] == [1, 2, 2]
    assert calls[0][1:4] == ["benchmark", "scaling", "--job"]
    assert json.loads(calls[2][4])["overrides"] == ["parallel.tensor=2", "parallel.tensor_across_nodes=true"]
    alone, data, _ = result["rows"]
    assert (alone["predicted_bytes"], data["nodes"], data["speed_up"], data["sent_bytes"]) == (0, 2, 2.0, 2_000_000)
    assert f"| 0.062 s (25%) | 2.00 | {data['predicted_bytes'] / 1e6:.2f} |" in table(result)
    plot(result, tmp_path / "scaling.png")
    hosts.write_text("node1 slots=1\nnode2 slots=2\n")
    with pytest.raises(UserError, match=r"nodes of \[1, 2\] slots"):
        on_nodes(str(hosts), "deepspeed", 29500)


def test_what_ranks_refuse_is_passed_on() -> None:
    with pytest.raises(UserError, match=r"^parallel\.tensor=3 does not divide$"):
        reported(2, "", "node2: warning: x\nnode1: error: parallel.tensor=3 does not divide\n", "3 ranks")
    with pytest.raises(RuntimeError, match="3 ranks failed"):
        reported(1, "", "Traceback", "3 ranks")


def test_bytes_are_read_from_the_interface_that_leads_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "dev"
    table.write_text(
        "Inter-|   Receive  |  Transmit\n face |bytes packets |bytes packets\n"
        "    lo: 1 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n  eth0: 2 1 0 0 0 0 0 0 12345 1 0 0 0 0 0 0\n"
    )
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    assert sent_bytes(Topology(0, 2, 0, 1, "test", (0, 1)), table) == 12345
    assert sent_bytes(Topology(0, 2, 0, 2, "test", (0, 0)), table) == 0, "one node has nobody to send to"
    assert sent_bytes(Topology(1, 4, 1, 2, "test", (0, 0, 1, 1)), table) == 0, "its node's first rank counts"
