"""Differences between arms with intervals, and one sentence that states what they support.

Arms of one seed share their initial weights, so differences are taken seed by seed. A difference counts if its 95%
interval (Student's t over the seeds) excludes zero and, of a primary outcome, if its p value, corrected by Holm's method for
the number of primary comparisons, is below 0.05 as well; with fewer than two seeds none counts. Only primary outcomes,
declared before the study begins, enter the sentence, and only if the gate (gates.py) is passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_metaxlm.evaluation.measures.transfer import interval
from dist_metaxlm.reporting.results import ArmComparison, ArmResult, Comparisons, Gate, Interval, Items, Verdict
from dist_metaxlm.study.arms import CROSS_ONLY, JOINT, JOINT_TWICE, MATCHED, META_ONLY, REPLAY, REVERSED, TWO_PHASE, WITH_CLM
from dist_metaxlm.study.gates import gate_sentence
from dist_metaxlm.study.statistics import LEVEL, POWER, bootstrap, detectable, holm, paired_p

CONTROLS = (JOINT, MATCHED, JOINT_TWICE, REVERSED, REPLAY, WITH_CLM, CROSS_ONLY, META_ONLY)
Outcomes = Mapping[str, Mapping[int, Items]]
"""Label of an arm -> seed -> outcomes of every item."""


def summarise(
    results: Sequence[ArmResult],
    measures: Mapping[str, tuple[str, bool]],
    primary: Sequence[str] = (),
    outcomes: Outcomes | None = None,
    gate: Gate | None = None,
) -> Comparisons:
    """Arms and comparisons of finished runs.

    Args:
        results: {label, kind, ratio, seed, figures {measure: value}} of every run.
        measures: measure -> (description, whether higher is better).
        primary: measures declared before the study began; empty: the sentence counts all.
        outcomes: of every item, for intervals over seeds, items and languages.
        gate: whether the arms have learnt enough; None: not judged.

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
            theirs = figures.get(_label(control, ratio), {})
            for name, (_, higher) in measures.items() if theirs else ():
                seeds = sorted(set(ours[name]) & set(theirs[name]))
                if seeds:
                    values = [ours[name][seed] - theirs[name][seed] for seed in seeds]
                    difference = interval(values)
                    resampled = _bootstrap(outcomes, f"{TWO_PHASE} {ratio:g}", _label(control, ratio), name, seeds)
                    comparisons.append(
                        {
                            "ratio": ratio,
                            "control": control,
                            "measure": name,
                            "difference": difference,
                            "verdict": judge(difference, higher),
                            "primary": name in primary and control in (JOINT, MATCHED),
                            "bootstrap": None if resampled is None else list(resampled[:2]),
                            "p": paired_p(values) if resampled is None else resampled[2],
                        }
                    )
    _correct(comparisons)
    said = None if gate is None else gate_sentence(gate)
    return {"arms": arms, "comparisons": comparisons, "verdict": said or sentence(comparisons, measures)}


def _label(control: str, ratio: float) -> str:
    return control if control in (JOINT, META_ONLY) else f"{control} {ratio:g}"


def _bootstrap(
    outcomes: Outcomes | None, ours: str, theirs: str, measure: str, seeds: Sequence[int]
) -> tuple[float, float, float] | None:
    """Interval and p over seeds, items and languages; None without outcomes of all these seeds, or for one seed."""
    mine, other = ((outcomes or {}).get(label, {}) for label in (ours, theirs))
    if len(seeds) < 2 or not all(seed in mine and seed in other for seed in seeds):
        return None
    return bootstrap({seed: mine[seed] for seed in seeds}, {seed: other[seed] for seed in seeds}, measure)


def _correct(comparisons: Sequence[ArmComparison]) -> None:
    """Add Holm's p to the primary comparisons, and take back `better` and `worse` where it is not below LEVEL."""
    tested = [item for item in comparisons if item["primary"] and item["p"] is not None]
    for item, p in zip(tested, holm([item["p"] or 0.0 for item in tested]), strict=True):
        item["p_holm"] = p
        if p >= LEVEL and item["verdict"] in ("better", "worse"):
            item["verdict"] = "no difference shown"


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
    asked = [item for item in asked if item.get("primary")] or asked
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
    return f"{_headline(better, worse, len(asked))} In detail: {'. '.join(_upper(part) for part in parts)}.{_power(asked)}"


def _power(asked: Sequence[ArmComparison]) -> str:
    """What difference this many seeds can show."""
    seeds = min(item["difference"]["n"] for item in asked)
    size = detectable(seeds)
    return (
        f" {seeds} seeds show, with a probability of {POWER:.0%}, true differences from {size:.1f} standard deviations of "
        "the difference between paired seeds on, and smaller ones more rarely."
    )


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
