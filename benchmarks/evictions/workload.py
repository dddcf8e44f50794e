"""Functions, jobs and traces, with the sizes and costs that were measured with real containers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from nanoagent.common.units import MIB
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    import random

BUDGET_BYTES: Final = 2048 * MIB


class Function(NamedTuple):
    """A function.

    Attributes:
        runtime: Its runtime.
        held_bytes: The memory that an idle container of the function holds.
        limit_bytes: The memory limit, which counts during a run.
        cold_ms: The duration of a cold start.
    """

    runtime: Runtime
    held_bytes: int
    limit_bytes: int
    cold_ms: float


PYTHON: Final = Function(Runtime.PYTHON, 18 * MIB, 128 * MIB, 250)
NODEJS: Final = Function(Runtime.NODEJS, 20 * MIB, 128 * MIB, 230)
CPP: Final = Function(Runtime.CPP, 4 * MIB, 128 * MIB, 160)
PANDAS: Final = Function(Runtime.PYTHON, 55 * MIB, 512 * MIB, 500)  # large imports
GENERIC: Final = {
    Runtime.PYTHON: Function(Runtime.PYTHON, 15 * MIB, 128 * MIB, 245),
    Runtime.NODEJS: Function(Runtime.NODEJS, 15 * MIB, 128 * MIB, 225),
    Runtime.CPP: Function(Runtime.CPP, 4 * MIB, 128 * MIB, 155),
}
"""Runtime → its generic containers; `cold_ms` is the time that one saves."""


class Job(NamedTuple):
    """A job: the time of its arrival in seconds, the number of its function, the duration of its run."""

    at_s: float
    function: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """The jobs of a simulation, in the order of their arrival.

    Attributes:
        name: A short name.
        about: A description.
        functions: All functions. A job has the index of its function.
        jobs: The jobs.
        budget_bytes: The memory of all containers together.
        shifts: The times at which the popular functions change, seconds.
    """

    name: str
    about: str
    functions: tuple[Function, ...]
    jobs: tuple[Job, ...]
    budget_bytes: int = BUDGET_BYTES
    shifts: tuple[float, ...] = ()


def mixed(rng: random.Random, number: int) -> tuple[Function, ...]:
    """Return functions of all kinds: 55 % Python, 20 % Node.js, 15 % C++, 10 % with large imports."""
    kinds = (PYTHON, NODEJS, CPP, PANDAS)
    return tuple(rng.choices(kinds, weights=(11, 4, 3, 2), k=number))
