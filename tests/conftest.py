from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from nanoagent.dev.local_services import EmbeddedStack

if TYPE_CHECKING:
    from collections.abc import Iterator

# `make test` and `make check` try the same examples each time; `make fuzz` draws new ones ("search").
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("search", max_examples=1000, deadline=None)
settings.load_profile("repeatable")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage among thousands of tests, which stay. It takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """The embedded services, one set for every process that runs tests.

    It starts without an event loop, so that tests may each have their own.
    """
    with EmbeddedStack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was tried in all, and what was measured by the way; tests note both as properties."""
    tried: Counter[str] = Counter()
    ratios: dict[str, float] = {}
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in reports:
        for name, value in (
            getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ()
        ):
            if name == "tried":
                tried[value[0]] += value[1]
            elif name == "ratio":
                ratios[value[0]] = value[1]
    if tried:
        terminalreporter.section("tried")
        for kind, count in sorted(tried.items()):
            terminalreporter.write_line(f"{kind:>10} {count:>8,}")
    if ratios:
        terminalreporter.section("measured by the way, beside other tests")
        for what, ratio in ratios.items():
            terminalreporter.write_line(f"{ratio:6.2f} x  {what}")
