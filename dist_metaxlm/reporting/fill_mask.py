"""The fill-mask section of the report page: accuracy on hidden words, and examples with guesses and hidden word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dist_metaxlm.reporting.baselines import Brief
from dist_metaxlm.reporting.results import Accuracy, FilledMask
from dist_metaxlm.reporting.sections import escape, number, panel, table


def accuracy_table(briefs: Mapping[str, Brief]) -> str:
    """Accuracy of checkpoints and of the table of word frequencies, in per cent; empty if nothing was measured."""
    rows = []
    for name, brief in briefs.items():
        words = brief.get("fill_mask")
        if words:
            cells = [_cells(words["en"]), _cells(words["others"])]
            rows.append([name, *cells[0], *cells[1]])
    if not rows:
        return ""
    head = ["", "English, first", "first five", "words", "others, first", "first five", "words"]
    return panel("Hidden words found, per cent", table(head, rows), wide=True)


def _cells(accuracy: Accuracy | None) -> list[str]:
    if accuracy is None:
        return ["–", "–", "0"]
    return [number(100 * accuracy["top1"], 1), number(100 * accuracy["top5"], 1), f"{accuracy['words']:,}"]


def example_panels(examples: Sequence[FilledMask]) -> str:
    """Sentences with a hidden word, the word, and the most probable tokens."""
    panels = []
    for example in examples:
        text = escape(example.get("text", "")).replace("&lt;mask&gt;", "<mark>mask</mark>")
        expected = example.get("expected")
        hidden = "" if expected is None else f'<p class="note">hidden: <b>{escape(expected)}</b>{_place(example)}</p>'
        guesses = "".join(
            f'<div class="guess"><span>{_marked(guess["token"], expected)}</span>'
            f'<span class="track"><span class="fill" '
            f'style="width:{100 * guess["score"]:.1f}%;background:var(--objective-1)"></span></span>'
            f'<span class="figure">{100 * guess["score"]:.1f}%</span></div>'
            for guess in example.get("predictions", [])
        )
        title = ", ".join(filter(None, [str(example.get("language", "")), str(example.get("chosen", ""))]))
        panels.append(panel(title, f'<p class="mask" dir="auto">{text}</p>{hidden}{guesses}'))
    return f'<div class="grid">{"".join(panels)}</div>'


def _marked(token: str, expected: str | None) -> str:
    word = token.strip() or "(space)"
    return f"✓ <b>{escape(word)}</b>" if word == expected else escape(word)


def _place(example: FilledMask) -> str:
    if "rank" not in example:
        return ""
    return f", guess number {example['rank'] + 1:,}, probability {100 * example['probability']:.1f}%"
