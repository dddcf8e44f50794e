"""The table and the picture of the findings. Pure functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from benchmarks.evictions.findings import POLICIES, goals, mean_of_ratios
from benchmarks.evictions.optimum import FurthestUse
from benchmarks.evictions.policies import Forecast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.evictions.findings import Figures, Findings

NAMES: Final = tuple(policy.name for policy in POLICIES)
_COLOURS: Final = ("#9aa0a6", "#c2452d", "#d98e04", "#3366cc", "#8e5ea2", "#2f8f5b")
_INTRODUCTION: Final = """# Which idle containers to evict

![The cold cost of each policy, relative to the offline policy](evictions.svg)

`python -m benchmarks.evictions --report docs/benchmarks` simulates the pool on generated traces and
writes this page. The simulation has fixed seeds, and no clock: the results are the same on every
machine. [ADR 0033](../adr/0033-eviction-by-forecast.md) has the decision.

* **Budget:** 2 GiB. A busy container counts with its limit (128 MiB, or 512 MiB with large
  imports), an idle one with the memory that it holds: Python 18 MiB, Node.js 20 MiB, C++ 4 MiB,
  large imports 55 MiB. A cold start takes 250, 230, 160 and 500 ms.
* **Not counted** is the first job of each function, because it is cold under every policy.
* `runs/age` is runs ÷ (idle time times memory), `GDSF` is FaaSCache, `forecast` is
  `container/eviction.py`.
* `offline` knows all arrivals. It evicts the container with the largest product of size and time
  until its next use, divided by its cold cost. For equal sizes and costs this is Belady's rule,
  which is optimal if a run needs no more memory than its idle container. Here it is a heuristic:
  its results are not a bound, and another policy may be better.
* `bound` is a lower bound (PFOO-L), which no policy reaches: it may move memory from one time to
  another. It is left out if jobs waited for memory.
"""


_SECTIONS: Final = {
    "cost": """
## Cold cost

The mean duration of a start, ms per job. The last row has the geometric mean of the ratios to
`offline`.
""",
    "share": """
## Cold share

Cold starts, % of the jobs.
""",
    "hits": """
## Hits

Hot starts, % of those of `offline`.
""",
    "waste": """
## Wasted memory

The sum of memory times idle time of containers that were evicted before their next use, GiB s.
""",
    "recovery": """
## Recovery

Minutes from a change of the popular functions until the cold cost is at most 1.25 times that of the
last five minutes before the next change.
""",
    "generic": """
## Generic containers

The forecast with generic containers: a number for each of three runtimes. A start in one
takes 5 ms (warm). Their creations take 0.2 s, one after another.

* `free`: they are evicted last, and created when memory is free.
* `first`: they are evicted last, and bound containers are evicted for them.
* `value`: a forecast of the starts that are not hot decides which containers are evicted.
""",
    "goals": """
## Goals
""",
}


def as_markdown(found: Findings) -> str:
    """Return the page."""
    traces = (f"* **{name}** ({trace.jobs:,} jobs): {trace.about}." for name, trace in found.traces.items())
    verdicts = {True: "reached", False: "**missed**"}
    parts = [
        _INTRODUCTION,
        "## Traces\n",
        *traces,
        _SECTIONS["cost"],
        _table(("trace", *NAMES, "bound"), cost_rows(found)),
        _SECTIONS["share"],
        _by_policy(found, lambda figures: f"{100 * figures.cold_share:.1f}"),
        _SECTIONS["hits"],
        _by_policy(found, lambda figures: f"{100 * figures.hit_share:.0f}"),
        _SECTIONS["waste"],
        _by_policy(found, lambda figures: f"{figures.wasted_gib_s:.0f}"),
        _SECTIONS["recovery"],
        _recovery(found),
        _SECTIONS["generic"],
        _generic(found),
        _SECTIONS["goals"],
        *(f"* {verdicts[reached]}: {goal}." for goal, reached in goals(found).items()),
    ]
    return "\n".join(parts) + "\n"


def cost_rows(found: Findings) -> list[tuple[str, ...]]:
    """Return the rows of the table of cold costs."""
    rows = [
        (
            name,
            *(f"{trace.policies[policy].cold_ms:.1f}" for policy in NAMES),
            "" if trace.bound_ms is None else f"{trace.bound_ms:.1f}",
        )
        for name, trace in found.traces.items()
    ]
    return [*rows, ("ratio", *(f"{mean_of_ratios(found, policy):.2f}" for policy in NAMES), "")]


def _by_policy(found: Findings, shown: Callable[[Figures], str]) -> str:
    rows = [
        (name, *(shown(trace.policies[policy]) for policy in NAMES)) for name, trace in found.traces.items()
    ]
    return _table(("trace", *NAMES), rows)


def _recovery(found: Findings) -> str:
    rows = [
        (name, *(str(trace.policies[policy].recovery_min) for policy in NAMES))
        for name, trace in found.traces.items()
        if trace.policies[Forecast.name].recovery_min is not None
    ]
    return _table(("trace", *NAMES), rows)


def _generic(found: Findings) -> str:
    rows = [
        (
            row.trace,
            str(row.number),
            row.refill,
            f"{100 * row.cold_share:.1f} %",
            f"{100 * row.warm_share:.1f} %",
            f"{row.start_ms:.1f}",
            str(row.evictions),
        )
        for row in found.generic
    ]
    return _table(("trace", "number", "refill", "cold", "warm", "ms per start", "evictions"), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, marks, *rows))


# --- the picture

_WIDTH: Final = 860
_LEFT: Final = 130  # px for the names
_RIGHT: Final = 30
_TOP: Final = 96
_ROW: Final = 26
_MOST: Final = 14.0  # times the cold cost of the offline policy: the end of the scale


def draw(found: Findings) -> str:
    """Return the text of an SVG: for each trace a row, for each policy a dot at its ratio to `offline`."""
    rows = [(name, trace) for name, trace in found.traces.items() if trace.policies["offline"].cold_ms > 0]
    height = _TOP + _ROW * len(rows) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"',
        f' viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 26, "Cold cost of each policy ÷ that of the offline policy", 'font-size="16"'),
    ]
    for number, name in enumerate(NAMES[:-1]):
        left = _LEFT + 110 * number
        lines += [_dot(left, 48, number), _text(left + 10, 52, name)]
    for ratio in (1, 1.2, 1.5, 2, 3, 5, 10):
        x = _position(ratio)
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - 16}" stroke="#dddddd"/>')
        lines.append(_text(x, _TOP - 14, f"{ratio:g}", 'text-anchor="middle" fill="#555555"'))
    for row, (name, trace) in enumerate(rows):
        y = _TOP + _ROW * row + 12
        lines.append(_text(_LEFT - 14, y + 4, name, 'text-anchor="end"'))
        offline_ms = trace.policies[FurthestUse.name].cold_ms
        for number, policy in enumerate(NAMES[:-1]):
            lines.append(_dot(_position(trace.policies[policy].cold_ms / offline_ms), y, number))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _position(ratio: float) -> float:
    clipped = min(max(ratio, 0.9), _MOST)
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(clipped / 0.9) / math.log(_MOST / 0.9)


def _dot(x: float, y: float, number: int) -> str:
    radius = 6 if NAMES[number] == Forecast.name else 4
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{_COLOURS[number]}" fill-opacity="0.85"/>'


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
