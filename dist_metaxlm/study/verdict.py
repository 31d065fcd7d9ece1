"""Differences between arms with intervals, and one sentence that states what they support.

Arms of one seed share their initial weights, so differences are taken seed by seed. A difference counts if its 95%
interval (Student's t over the seeds) excludes zero; with fewer than two seeds none counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_metaxlm.evaluation.measures.transfer import interval
from dist_metaxlm.reporting.results import ArmComparison, ArmResult, Comparisons, Interval, Verdict
from dist_metaxlm.study.arms import CROSS_ONLY, JOINT, MATCHED, META_ONLY, TWO_PHASE

CONTROLS = (JOINT, MATCHED, CROSS_ONLY, META_ONLY)


def summarise(results: Sequence[ArmResult], measures: Mapping[str, tuple[str, bool]]) -> Comparisons:
    """Arms and comparisons of finished runs.

    Args:
        results: {label, kind, ratio, seed, figures {measure: value}} of every run.
        measures: measure -> (description, whether higher is better).

    Returns:
        `arms` {label: {measure: {mean, half_width, n}}}, `comparisons` [{ratio, control, measure, difference, verdict}]
        with the difference two-phase minus control, `verdict` sentence.
    """
    labels = list(dict.fromkeys(result["label"] for result in results))
    figures = {label: {name: _over(results, label, name) for name in measures} for label in labels}
    arms = {
        label: {name: interval(list(values.values())) for name, values in of.items() if values}
        for label, of in figures.items()
    }
    comparisons: list[ArmComparison] = []
    for ratio in sorted(
        {result["ratio"] for result in results if result["kind"] == TWO_PHASE and result["ratio"] is not None}
    ):
        ours = figures[f"{TWO_PHASE} {ratio:g}"]
        for control in CONTROLS:
            theirs = figures.get(control if control in (JOINT, META_ONLY) else f"{control} {ratio:g}", {})
            for name, (_, higher) in measures.items() if theirs else ():
                seeds = sorted(set(ours[name]) & set(theirs[name]))
                if seeds:
                    difference = interval([ours[name][seed] - theirs[name][seed] for seed in seeds])
                    comparisons.append(
                        {
                            "ratio": ratio,
                            "control": control,
                            "measure": name,
                            "difference": difference,
                            "verdict": judge(difference, higher),
                        }
                    )
    return {"arms": arms, "comparisons": comparisons, "verdict": sentence(comparisons, measures)}


def _over(results: Sequence[ArmResult], label: str, measure: str) -> dict[int, float]:
    return {
        result["seed"]: value
        for result in results
        if result["label"] == label and (value := result["figures"].get(measure)) is not None
    }


def judge(difference: Interval, higher: bool) -> Verdict:
    """`better`, `worse`, `no difference shown`, or `one seed` if there is no interval."""
    if difference["half_width"] is None:
        return "one seed"
    if abs(difference["mean"]) <= difference["half_width"]:
        return "no difference shown"
    return "better" if (difference["mean"] > 0) == higher else "worse"


def sentence(comparisons: Sequence[ArmComparison], measures: Mapping[str, tuple[str, bool]]) -> str:
    """One sentence about what the comparisons with joint training and with the matched control support."""
    asked = [item for item in comparisons if item["control"] in (JOINT, MATCHED)]
    if not asked:
        return "No two-phase arm and single-phase arm are both finished: there is no verdict yet."
    if all(item["verdict"] == "one seed" for item in asked):
        return (
            "There is one seed an arm: differences between arms cannot be told from differences between seeds, and "
            "there is no verdict."
        )
    parts = []
    for control, name in ((JOINT, "joint training at equal tokens"), (MATCHED, "one phase over the same amounts of text")):
        mine = [item for item in asked if item["control"] == control]
        if not mine:
            continue
        counts = {
            verdict: [item for item in mine if item["verdict"] == verdict]
            for verdict in ("better", "worse", "no difference shown")
        }
        said = [
            f"{verdict} in {_listed(items, measures)}"
            for verdict, items in counts.items()
            if items and verdict != "no difference shown"
        ]
        none = len(counts["no difference shown"])
        if none:
            said.append(f"no difference shown in {none} of {len(mine)} comparisons")
        parts.append(f"against {name}, two phases are " + "; ".join(said))
    better, worse = (sum(item["verdict"] == verdict for item in asked) for verdict in ("better", "worse"))
    return f"{_headline(better, worse, len(asked))} In detail: {'. '.join(_upper(part) for part in parts)}."


def _headline(better: int, worse: int, asked: int) -> str:
    seeds = f"of {asked} comparisons with the single-phase arms, {better} favour two phases and {worse} are against them"
    if better and not worse:
        return f"The numbers support two phases where they show a difference: {seeds}."
    if worse and not better:
        return f"The numbers speak against two phases where they show a difference: {seeds}."
    if better and worse:
        return f"The numbers point both ways: {seeds}."
    return f"The numbers show no difference between two phases and one: {seeds}."


def _listed(items: Sequence[ArmComparison], measures: Mapping[str, tuple[str, bool]]) -> str:
    return ", ".join(
        f"{measures[item['measure']][0]} (n1/N = {item['ratio']:g}: {item['difference']['mean']:+.3f} ± "
        f"{item['difference']['half_width']:.3f})"
        for item in items
    )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
