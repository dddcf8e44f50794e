"""What a worker process lets its jobs reach."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

ONLY_PYTHON = {f"WARM_POOL_{runtime}_SIZE": "0" for runtime in ("NODEJS", "CPP", "GO")}
ASK = """
import json, os, socket, urllib.request
for host, port in json.loads(os.environ["PAYLOAD"]):
    try: socket.create_connection((host, port), 60).close(); print("there")
    except OSError as error: print(type(error).__name__)
try:
    urllib.request.urlopen(os.environ["AI_ENDPOINT"] + "/api/generate", b'{"prompt": "a"}')
except urllib.error.HTTPError as error: print(error.code, "AI_ENDPOINT" in json.load(error)["error"])
except OSError as error: print(type(error.reason).__name__)
"""


async def test_a_job_reaches_no_service_of_its_worker_whatever_is_allowed(
    stack: EmbeddedStack, tmp_path: Path
):
    services = urlsplit(stack.environment()["AWS_ENDPOINT_URL"])
    targets = [
        [stack.redis_host, stack.redis_port],
        [services.hostname, services.port],
        ["169.254.169.254", 80],
        ["172.17.0.1", 80],
        ["localhost.localdomain", 443],
        ["metadata.google.internal", 80],
    ]
    refused = ["ConnectionRefusedError"] * 2 + ["OSError"] * 2 + ["gaierror"] * 2
    async with WorkerUnderTest(stack, tmp_path, {"NETWORK": "egress", **ONLY_PYTHON}) as worker:
        code = await worker.upload({"main.py": ASK})
        wide = await worker.run(s3Key=code, input=targets)
        narrow = await worker.run(s3Key=code, input=targets, network="none")
    assert wide["stdout"].splitlines() == [*refused, "503 True"], wide["stderr"]
    assert narrow["stdout"].splitlines() == [*refused, "ConnectionRefusedError"], narrow["stderr"]
