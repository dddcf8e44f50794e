"""The random run, short and always with the same seed; `make soak` has the long one."""

from __future__ import annotations

import pytest

from faults.random_run import Plan, play


@pytest.mark.timeout(600)
async def test_whatever_happens_every_request_has_one_result():
    await play(Plan(seed=5, jobs=40, workers=2, seconds=6, every_s=1.0))
