"""The process of the worker."""

from __future__ import annotations

from nanoagent import app
from nanoagent.wiring import closing
from support.agents.worker_rig import Rig


async def test_systemd_is_asked_for_as_long_as_a_drain_may_take(systemd, tmp_path):
    rig = Rig(tmp_path, drain_seconds=3600)
    run = rig.start()
    app._stop(rig.worker, rig.settings)
    stopping, extend = systemd.recv(1000).decode().splitlines()
    assert stopping == "STOPPING=1"
    assert int(extend.removeprefix("EXTEND_TIMEOUT_USEC=")) == (3600 + closing.STOP_TAIL_S) * 1_000_000
    rig.worker.stop()
    await run
