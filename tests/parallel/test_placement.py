from __future__ import annotations

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.parallel.placement import check_placement, placement_lines
from dist_metaxlm.parallel.topology import Topology, filled_nodes


def job(*sizes: int) -> Topology:
    names = tuple(f"node{n + 1}" for n in range(len(sizes)))
    return Topology(0, sum(sizes), 0, sizes[0], "deepspeed", filled_nodes(sizes), names)


def test_tensor_groups_inside_stages_across() -> None:
    found = check_placement(job(4, 4), tensor=2, pipeline=2, tensor_across_nodes=False)
    assert [found.coordinates(rank) for rank in range(8)] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 1),
        (1, 0, 0),
        (1, 0, 1),
        (1, 1, 0),
        (1, 1, 1),
    ]
    lines = placement_lines(found)
    assert lines[0].startswith("placement: 2 nodes, tensor 2 x pipeline 2 x data 2")
    assert lines[1] == "  node1 |0 s0 d0 t0 |1 s0 d0 t1 |2 s0 d1 t0 |3 s0 d1 t1"
    assert lines[2].startswith("  node2 |4 s1 d0 t0")
    assert lines[-1] == "  tensor groups talk inside nodes"


def test_megatron_orders_ranks_the_same_way() -> None:
    from megatron.core.parallel_state import RankGenerator

    generator = RankGenerator(tp=2, ep=1, dp=2, pp=2, cp=1, order="tp-cp-ep-dp-pp")
    found = check_placement(job(4, 4), 2, 2, False)
    assert [list(group) for group in found.tensor_groups()] == generator.get_ranks("tp")
    for group in generator.get_ranks("dp"):
        assert len({(found.coordinates(rank)[0], found.coordinates(rank)[2]) for rank in group}) == 1
    for group in generator.get_ranks("pp"):
        assert [found.coordinates(rank)[0] for rank in group] == [0, 1]


@pytest.mark.parametrize(
    ("sizes", "tensor", "words"),
    [
        (
            (2, 2),
            4,
            "ranks 0 to 3 of one tensor group on node1, node2 (2 ranks a node), and they talk over the network in "
            "every block; set parallel.tensor=2, or parallel.tensor_across_nodes=true",
        ),
        ((1, 1), 2, "set parallel.tensor=1"),
        ((3, 3), 2, "ranks 2 to 3 of one tensor group on node1, node2"),
        ((2, 1, 1), 2, "ranks 2 to 3 of one tensor group on node2, node3"),
    ],
)
def test_a_tensor_group_across_nodes_is_refused_unless_asked_for(sizes: tuple[int, ...], tensor: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_placement(job(*sizes), tensor, 1, False)
    assert words in str(caught.value)
    lines = placement_lines(check_placement(job(*sizes), tensor, 1, True))
    assert lines[-1] == "  tensor groups talk over the network"


def test_ranks_dealt_round_over_the_nodes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt = Topology(0, 4, 0, 2, "mpi", (0, 1, 0, 1), ("a", "b"))
    assert (dealt.nodes, dealt.node, dealt.link(0, 2), dealt.link(0, 1)) == (2, 0, "node", "network")
    with pytest.raises(UserError, match="on a, b"):
        check_placement(dealt, 2, 1, False)


def test_many_nodes_are_cut_short() -> None:
    lines = placement_lines(check_placement(job(*[1] * 40), 1, 1, False))
    assert len(lines) == 19
    assert "  ... 24 more" in lines
