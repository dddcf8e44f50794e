"""The event loop of a worker's process."""

from __future__ import annotations

import asyncio
import sys

import pytest

from nanoagent.host import event_loop


async def _name_of_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_the_worker_runs_on_uvloop() -> None:
    pytest.importorskip("uvloop")
    assert event_loop.run(_name_of_loop()).startswith("uvloop")


def test_without_uvloop_the_worker_runs_on_the_loop_of_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert event_loop.run(_name_of_loop()).startswith("asyncio")


def test_an_error_of_the_coroutine_reaches_the_caller() -> None:
    async def fail() -> None:
        raise LookupError("from inside")

    with pytest.raises(LookupError, match="from inside"):
        event_loop.run(fail())
