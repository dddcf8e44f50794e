"""The arrival patterns. All are generated with fixed seeds."""

from __future__ import annotations

import math
import random
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from benchmarks.evictions.workload import BUDGET_BYTES, PYTHON, Job, Trace, mixed

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.evictions.workload import Function

    Arrivals = Iterable[tuple[float, int]]  # time in seconds, function

_HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * _HOUR_S
_SCAN_ROUNDS: Final = 20
_FREE_FOR_RUNS_BYTES: Final = 256 * MIB  # of the budget, in the size of a scan: two runs at a time


def _trace(
    name: str,
    about: str,
    functions: tuple[Function, ...],
    arrivals: Arrivals,
    rng: random.Random,
    shifts: tuple[float, ...] = (),
) -> Trace:
    """Return a trace. Runs take 30 ms in the median, log-normal, at most 5 s."""
    jobs = tuple(
        Job(at_s, function, min(rng.lognormvariate(math.log(0.03), 1.0), 5.0))
        for at_s, function in sorted(arrivals)
    )
    return Trace(name, about, functions, jobs, shifts=shifts)


def _poisson(
    rng: random.Random, functions: Sequence[int], exponent: float, per_s: float, span_s: tuple[float, float]
) -> Iterator[tuple[float, int]]:
    """Return independent arrivals. The popularity of functions follows Zipf's law."""
    weights = list(accumulate(1 / (rank + 1) ** exponent for rank in range(len(functions))))
    at_s, end_s = span_s
    while (at_s := at_s + rng.expovariate(per_s)) < end_s:
        yield at_s, rng.choices(functions, cum_weights=weights)[0]


def _zipf(rng: random.Random, exponent: float) -> Trace:
    functions = mixed(rng, 400)
    arrivals = _poisson(rng, range(400), exponent, 12, (0, 800))
    about = f"400 functions, Zipf {exponent}, 12 jobs/s"
    return _trace(f"zipf {exponent}", about, functions, arrivals, rng)


def _bursts(rng: random.Random) -> Trace:
    functions = mixed(rng, 300)
    arrivals: list[tuple[float, int]] = []
    for first_s, function in _poisson(rng, range(300), 0.8, 1.0, (0, 1200)):
        at_s = first_s
        for _ in range(min(int(rng.expovariate(1 / 8)) + 1, 40)):
            arrivals.append((at_s, function))
            at_s += rng.expovariate(10)
    about = "300 functions, Zipf 0.8, each arrival a burst of 8 jobs on average, 10 a second"
    return _trace("bursts", about, functions, arrivals, rng)


def _fan_out(rng: random.Random) -> Trace:
    end_s = 0.75 * _HOUR_S
    arrivals: list[tuple[float, int]] = []
    for function in range(60):
        start_s = rng.random() * 600
        while start_s < end_s:
            at_s = start_s
            for _ in range(40):
                arrivals.append((at_s, function))
                at_s += rng.expovariate(5)
            start_s += 600 * rng.uniform(0.9, 1.1)
    for function in range(60, 200):
        arrivals += _poisson(rng, [function], 1.0, 1 / 60, (0, end_s))
    about = "60 functions with 40 jobs every 10 minutes, 140 functions with a job a minute"
    return _trace("fan-out", about, mixed(rng, 200), arrivals, rng)


def _cron(rng: random.Random) -> Trace:
    end_s = 2.2 * _HOUR_S
    arrivals: list[tuple[float, int]] = []
    for function in range(240):
        period_s = 60 if function < 40 else 300 if function < 100 else 900 if function < 160 else 3600
        arrivals += [
            (peak * period_s + rng.random() * 20, function) for peak in range(math.ceil(end_s / period_s))
        ]
    arrivals += _poisson(rng, range(240, 340), 1.0, 1.0, (0, end_s))
    about = "240 functions every 1, 5, 15 or 60 minutes, and 100 functions, Zipf 1.0, 1 job/s"
    return _trace("cron", about, mixed(rng, 340), arrivals, rng)


def _scan(rng: random.Random, ratio: float) -> Trace:
    number = round(ratio * (BUDGET_BYTES - _FREE_FOR_RUNS_BYTES) / PYTHON.held_bytes)
    about = f"a round robin over {number} Python functions, {ratio} times as many as fit, 10 jobs/s"
    return _trace(f"scan {ratio}", about, (PYTHON,) * number, _round_robin(rng, number), rng)


def _mixed_scan(rng: random.Random) -> Trace:
    functions: list[Function] = []
    while sum(function.held_bytes for function in functions) < 1.1 * (BUDGET_BYTES - _FREE_FOR_RUNS_BYTES):
        functions += mixed(rng, 1)
    arrivals = _round_robin(rng, len(functions))
    about = f"the same over {len(functions)} functions of all kinds, 1.1 times as many as fit"
    return _trace("scan 1.1 mixed", about, tuple(functions), arrivals, rng)


def _round_robin(rng: random.Random, number: int) -> Iterator[tuple[float, int]]:
    at_s = 0.0
    for arrival in range(_SCAN_ROUNDS * number):
        at_s += 0.1 * rng.uniform(0.8, 1.2)
        yield at_s, arrival % number


def _sweep(rng: random.Random) -> Trace:
    arrivals = list(_poisson(rng, range(200), 1.0, 10, (0, 900)))
    arrivals += [(300 + 0.1 * number, 200 + number) for number in range(3000)]
    about = "200 functions, Zipf 1.0, 10 jobs/s; from 300 to 600 s also 3,000 functions once each"
    return _trace("sweep", about, mixed(rng, 3200), arrivals, rng)


def _night(rng: random.Random) -> Trace:
    arrivals: list[tuple[float, int]] = []
    for at_s, function in _poisson(rng, range(400), 0.9, 0.25, (0, _DAY_S)):
        daylight = 0.5 - 0.5 * math.cos(2 * math.pi * at_s / _DAY_S)
        if function % 10 == 0 or rng.random() < 0.08 + 0.92 * daylight:
            arrivals.append((at_s, function))
    for function in range(100):
        arrivals += [
            (2 * _HOUR_S + function * 12 + batch * 1300 + rng.random() * 60, 400 + function)
            for batch in range(3)
        ]
    about = (
        "24 hours: 400 functions, Zipf 0.9, most of them by day, and 100 functions in three batches at 2:00"
    )
    return _trace("night", about, mixed(rng, 500), arrivals, rng)


def _shift(rng: random.Random) -> Trace:
    functions = list(range(400))
    arrivals: list[tuple[float, int]] = []
    for start_s in (0, 480, 960):
        rng.shuffle(functions)
        arrivals += _poisson(rng, functions, 1.1, 12, (start_s, start_s + 480))
    about = "400 functions, Zipf 1.1, 12 jobs/s; every 8 minutes other functions are the popular ones"
    return _trace("shift", about, mixed(rng, 400), arrivals, rng, shifts=(480.0, 960.0))


GENERATORS: Final[dict[str, Callable[[random.Random], Trace]]] = {
    "zipf 0.8": partial(_zipf, exponent=0.8),
    "zipf 1.1": partial(_zipf, exponent=1.1),
    "bursts": _bursts,
    "fan-out": _fan_out,
    "cron": _cron,
    "scan 0.9": partial(_scan, ratio=0.9),
    "scan 1.0": partial(_scan, ratio=1.0),
    "scan 1.1": partial(_scan, ratio=1.1),
    "scan 1.5": partial(_scan, ratio=1.5),
    "scan 2.0": partial(_scan, ratio=2.0),
    "scan 1.1 mixed": _mixed_scan,
    "sweep": _sweep,
    "night": _night,
    "shift": _shift,
}
"""Name → the function that generates the trace from random numbers."""


def generate(name: str, seed: int = 0) -> Trace:
    """Return a trace of `GENERATORS`. The published results have the seed 0."""
    return GENERATORS[name](random.Random(seed))  # noqa: S311 - a simulation
