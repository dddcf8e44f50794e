"""A picture of a result: each figure and its goal, as a plain SVG. Pure functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from benchmarks.figures import GOALS, figures_of, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.figures import Findings

_WIDTH: Final = 860
_LABEL: Final = 250  # width of the names, px
_SIDE: Final = 150  # width of the values to the right of the scale, px
_ROW: Final = 22
_TOP: Final = 78
_BOTTOM: Final = 30
# The scale is logarithmic: half of a goal and twice a goal have the same distance from the goal.
_LOWEST: Final = 1 / 16
_HIGHEST: Final = 4.0
_MET: Final = "#2f8f5b"
_MISSED: Final = "#c2452d"


def share_of_goal(value: float, bound: float, *, most: bool) -> float:
    """Return a figure as a share of its goal, for both kinds of goals. A share of 1 or less meets it."""
    if value <= 0 or bound <= 0:
        return _LOWEST
    return value / bound if most else bound / value


def position(share: float) -> float:
    """Return the position of a share on the scale, px from the left. The ends of the scale limit it."""
    clipped = min(max(share, _LOWEST), _HIGHEST)
    width = _WIDTH - _LABEL - _SIDE
    return _LABEL + width * (math.log(clipped / _LOWEST) / math.log(_HIGHEST / _LOWEST))


def draw(findings: Findings, keys: Sequence[str], title: str, subtitle: str) -> str:
    """Return the text of the SVG. Figures without a goal or a value are left out."""
    figures = [
        figure for key in keys for figure in figures_of(key) if figure in GOALS and figure in findings.values
    ]
    height = _TOP + _ROW * len(figures) + _BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"',
        f' viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 26, title, size=16, weight="600"),
        _text(16, 46, subtitle, colour="#555555"),
        *_scale(height),
    ]
    for number, figure in enumerate(figures):
        lines += _bar(findings, figure, _TOP + _ROW * number)
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _scale(height: int) -> list[str]:
    """Return vertical lines at shares of the goal."""
    lines = []
    for share, label in (
        (1 / 16, "1/16"),
        (1 / 4, "1/4"),
        (1 / 2, "1/2"),
        (1.0, "goal"),
        (2.0, "2x"),
        (4.0, "4x"),
    ):
        x = position(share)
        colour, width = ("#222222", 1.5) if share == 1 else ("#dddddd", 1.0)
        lines.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - _BOTTOM}" '
            f'stroke="{colour}" stroke-width="{width}"/>'
        )
        lines.append(_text(x, _TOP - 12, label, anchor="middle", colour="#555555", size=11))
    return lines


def _bar(findings: Findings, figure: str, top: int) -> list[str]:
    goal, value = GOALS[figure], findings.values[figure]
    share = share_of_goal(value, goal.bound, most=goal.most)
    colour = _MET if goal.met(value) else _MISSED
    left, right = position(_LOWEST), position(share)
    baseline = top + 14
    lines = [
        _text(_LABEL - 10, baseline, figure, anchor="end"),
        f'<rect x="{left:.1f}" y="{top + 3}" width="{max(right - left, 1):.1f}" height="{_ROW - 8}"',
        f' fill="{colour}"/>',
        _text(_WIDTH - _SIDE + 12, baseline, f"{shown(value)}  (goal {goal})", colour=colour),
    ]
    if figure in findings.intervals:
        ends = sorted(
            position(share_of_goal(end, goal.bound, most=goal.most)) for end in findings.intervals[figure]
        )
        middle = top + 3 + (_ROW - 8) / 2
        lines.append(
            f'<line x1="{ends[0]:.1f}" y1="{middle}" x2="{ends[1]:.1f}" y2="{middle}" '
            f'stroke="#111111" stroke-width="1.5"/>'
        )
    return lines


def _text(  # noqa: PLR0913 - the attributes of a text in SVG
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    weight: str = "400",
    anchor: str = "start",
    colour: str = "#111111",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(text)}</text>'
    )
