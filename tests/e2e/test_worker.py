"""What the worker does around the programs: starts, redeploys, measures, settles, stops."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiodocker
import pytest

from nanoagent.model.job import Runtime
from support.agents.worker import PROGRAMS, WorkerUnderTest
from support.checks.matrix import EXHAUSTIVE
from support.checks.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.local_services import EmbeddedStack

pytestmark = [pytest.mark.asyncio(loop_scope="session")]

MB = 1024 * 1024
RUNTIMES = [str(runtime) for runtime in Runtime]


async def containers_of(worker_id: str) -> list[dict[str, Any]]:
    async with aiodocker.Docker() as docker:
        filters = json.dumps({"label": [f"nanoagent.worker={worker_id}"]})
        return [dict(found._container) for found in await docker.containers.list(all=1, filters=filters)]


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_the_second_run_of_a_function_is_hot(worker: WorkerUnderTest, runtime: str):
    function_id = f"twice-{secrets.token_hex(4)}"
    first = await worker.run_program(runtime, "quick", functionId=function_id, input={"say": "1"})
    second = await worker.run_program(runtime, "quick", functionId=function_id, input={"say": "2"})
    assert (first["stdout"], second["stdout"]) == ("1\n", "2\n")
    assert first["start"] in {"warm", "cold"}
    assert second["start"] == "hot"
    assert second["timings"]["build"] < 1000
    assert second["isolation"] == "sandbox"


async def test_a_hot_run_finds_nothing_of_the_previous_run(worker: WorkerUnderTest):
    source = (
        "import os\n"
        "places = ['/tmp', '/output', '/dev/shm', '/work']\n"
        "print({place: sorted(os.listdir(place)) for place in places})\n"
        "print(open('main.py').read().count('overwritten'))\n"
        "for place in places:\n"
        "    os.makedirs(f'{place}/left/behind')\n"
        "open('main.py', 'a').write('# overwritten')\n"
    )
    key = await worker.upload({"main.py": source})
    function_id = f"clean-{secrets.token_hex(4)}"
    first = await worker.run(s3Key=key, functionId=function_id)
    second = await worker.run(s3Key=key, functionId=function_id)
    assert second["start"] == "hot"
    assert first["stdout"] == second["stdout"]
    assert "{'/tmp': [], '/output': [], '/dev/shm': [], '/work': ['main.py']}" in second["stdout"]


async def test_memory_that_a_run_hides_in_sockets_is_not_left_to_the_next(worker: WorkerUnderTest):
    # An unlinked file whose descriptor travels in a pair of sockets that carry each other: the kernel frees
    # such cycles only when its collector looks for them. net/unix/garbage.c
    source = (
        "import array, json, os, socket\n"
        "if json.loads(os.environ['PAYLOAD'])['hide']:\n"
        "    file = open('/tmp/hidden', 'wb')\n"
        "    file.write(bytes(90 << 20))\n"
        "    file.flush()\n"
        "    os.unlink('/tmp/hidden')\n"
        "    one, two = socket.socketpair()\n"
        "    rights = array.array('i', [one.fileno(), two.fileno(), file.fileno()])\n"
        "    for end in (one, two):\n"
        "        end.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n"
        "else:\n"
        "    bytearray(60 << 20)[::4096] = b'x' * (60 << 8)\n"
        "    space = os.statvfs('/tmp')\n"
        "    print(space.f_blocks - space.f_bfree)\n"
    )
    key = await worker.upload({"main.py": source})
    function_id = f"hide-{secrets.token_hex(4)}"
    hidden = await worker.run(s3Key=key, functionId=function_id, input={"hide": True})
    after = await worker.run(s3Key=key, functionId=function_id, input={"hide": False})
    assert hidden["status"] == "SUCCESS"
    assert (after["status"], after["stdout"]) == ("SUCCESS", "0\n")


async def test_memory_that_a_run_hides_outside_of_every_folder_is_not_left_either(worker: WorkerUnderTest):
    source = (
        "import array, json, os, socket\n"
        "if json.loads(os.environ['PAYLOAD'])['hide']:\n"
        "    hidden = os.memfd_create('hidden')\n"
        "    os.write(hidden, bytes(60 << 20))\n"
        "    one, two = socket.socketpair()\n"
        "    rights = array.array('i', [one.fileno(), two.fileno(), hidden])\n"
        "    for end in (one, two):\n"
        "        end.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])\n"
        "else:\n"
        "    held = bytearray(90 << 20)\n"
        "    held[::4096] = b'x' * (90 << 8)\n"
    )
    key = await worker.upload({"main.py": source})
    function_id = f"memfd-{secrets.token_hex(4)}"
    for hide in (True, True, False):
        result = await worker.run(s3Key=key, functionId=function_id, input={"hide": hide})
        assert result["status"] == "SUCCESS"
    assert abs(result["peakMemoryBytes"] - 96 * MB) < 8 * MB


async def test_code_that_fills_the_page_cache_stays_hot(worker: WorkerUnderTest):
    # Random, so that it does not compress; under another name than any other test's file.
    name = f"data-{secrets.token_hex(4)}"
    source = f"print(open('{name}', 'rb').seek(0, 2))"
    key = await worker.upload({"main.py": source, name: os.urandom(45 * MB)})
    await worker.run(s3Key=key, functionId=f"first-{name}", memoryMb=32)
    # From here on it is on the disk only, so that whoever reads it next is charged for the cache.
    for path in Path(worker.environment()["CODE_CACHE_DIR"]).rglob(name):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    first = await worker.run(s3Key=key, functionId=f"second-{name}", memoryMb=32)
    second = await worker.run(s3Key=key, functionId=f"second-{name}", memoryMb=32)
    assert (first["status"], second["status"], second["start"]) == ("SUCCESS", "SUCCESS", "hot")


async def test_the_end_of_a_run_is_known_although_its_container_was_full(worker: WorkerUnderTest):
    source = (
        "import os\n"
        "for number in range(5000):\n"
        "    open('/output/' + str(number).zfill(200), 'w').close()\n"
        "print('filling', flush=True)\n"
        "file = open('/tmp/fill', 'wb')\n"
        "while True:\n"
        "    file.write(bytes(1 << 20))\n"
    )
    result = await worker.run(s3Key=await worker.upload({"main.py": source}), memoryMb=64)
    assert (result["status"], result["errorType"]) == ("FAILED", "OUT_OF_MEMORY")
    assert (result["stdout"], result["attempt"]) == ("filling\n", 1)


async def test_a_redeploy_under_the_same_key_is_seen(worker: WorkerUnderTest):
    key = await worker.upload({"main.py": "print('old')"})
    before = await worker.run(s3Key=key, functionId="redeployed")
    await worker.upload({"main.py": "print('new')"}, key)
    after = await worker.run(s3Key=key, functionId="redeployed")
    assert (before["stdout"], after["stdout"]) == ("old\n", "new\n")
    assert after["start"] != "hot"


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_peak_memory_is_the_truth_and_not_an_earlier_runs(worker: WorkerUnderTest, runtime: str):
    function_id = f"peak-{secrets.token_hex(4)}"

    async def run(megabytes: int) -> tuple[int, int]:
        result = await worker.run_program(
            runtime, "peak", functionId=function_id, memoryMb=512, input={"megabytes": megabytes}
        )
        return result["peakMemoryBytes"], int(result["stdout"])

    for megabytes in (100, 1, 100):
        measured, truth = await run(megabytes)
        assert abs(measured - truth) <= max(0.05 * truth, 3 * MB), f"{megabytes} MB"


async def test_a_function_is_not_charged_for_the_one_that_its_container_served_before(
    stack: EmbeddedStack, tmp_path: Path
):
    """A separate worker, with memory for one container: it recycles the container for the second function."""
    small = {f"WARM_POOL_{runtime.upper()}_SIZE": "0" for runtime in RUNTIMES}
    small |= {"WORKER_MEMORY_MB": "256", "BUILD_MEMORY_MB": "256"}
    measured = []
    async with WorkerUnderTest(stack, tmp_path, small) as worker:
        for megabytes in (100, 1):
            before = await worker.metric("worker_job_peak_memory_bytes_sum", runtime="python")
            result = await worker.run_program(
                "python",
                "peak",
                functionId=f"of-{megabytes}",
                memoryMb=236,
                input={"megabytes": megabytes},
            )
            after = await worker.metric("worker_job_peak_memory_bytes_sum", runtime="python")
            assert result["start"] == "cold"
            truth = int(result["stdout"])
            assert abs(result["peakMemoryBytes"] - truth) <= max(0.05 * truth, 3 * MB), f"{megabytes} MB"
            assert after - before == result["peakMemoryBytes"]
            measured.append(result["peakMemoryBytes"])
        assert await worker.metric("worker_container_recycling_seconds_count", runtime="python") == 1
    assert measured[0] - measured[1] > 90 * MB


async def test_peak_memory_counts_what_a_child_held(worker: WorkerUnderTest):
    result = await worker.run_program("python", "peak_child", memoryMb=512, input={"megabytes": 100})
    truth = int(result["stdout"])
    assert abs(result["peakMemoryBytes"] - truth) <= max(0.05 * truth, 3 * MB)


async def test_a_stored_request_is_published_again_and_not_run_again(worker: WorkerUnderTest):
    key = await worker.upload({"main.py": "import uuid; print(uuid.uuid4())"})
    message = worker.message(s3Key=key)
    (first,) = await worker.run_all([message])
    (second,) = await worker.run_all([message])
    assert first == second
    stored = await worker.redis.get(f"job:{message['requestId']}")
    assert stored is not None
    assert json.loads(stored) == first
    assert 0 < await worker.redis.ttl(f"job:{message['requestId']}") <= 3600


async def test_an_unreadable_message_ends_in_the_dead_letter_queue(stack: EmbeddedStack, tmp_path: Path):
    async with WorkerUnderTest(
        stack, tmp_path, {f"WARM_POOL_{r.upper()}_SIZE": "0" for r in RUNTIMES}
    ) as worker:
        await stack.queues.send("this is no JSON", queue_url=worker.queue_url)

        async def is_dead() -> bool:
            letters = await stack.queues.dead_letters(queue_url=worker.dead_letter_url)
            return [letter["body"] for letter in letters] == ["this is no JSON"]

        await eventually(is_dead)
        assert await worker.metric("worker_jobs_processed_total", status="invalid") >= 1


async def test_a_result_that_is_too_large_has_its_logs_in_s3(worker: WorkerUnderTest):
    # A control character takes six bytes in JSON: 256 KiB of them are 1.5 MiB.
    key = await worker.upload({"main.py": "print('\\x01' * 200_000 + '끝')"})
    result = await worker.run(s3Key=key)
    assert result["status"] == "SUCCESS"
    assert len(json.dumps(result)) < 600 * 1024
    assert (await worker.output(result["stdoutUrl"])).decode() == "\x01" * 200_000 + "끝\n"
    assert result["stdoutTruncatedBytes"] > 0
    assert result["stdout"].endswith("끝\n")


async def test_metrics_and_health_tell_what_happened(worker: WorkerUnderTest):
    before = await worker.metric("worker_jobs_processed_total", status="success", runtime="python")
    await worker.run_program("python", "quick", input={"say": "counted"})

    async def counted() -> bool:
        now = await worker.metric("worker_jobs_processed_total", status="success", runtime="python")
        return now == before + 1

    await eventually(counted)
    assert await worker.metric("worker_job_duration_seconds_count", runtime="python", model="llama3:8b") > 0
    assert (await worker.get("/healthz"))[0] == 200
    status, document = await worker.get("/readyz")
    assert status == 200, document


async def test_a_dead_container_is_replaced(worker: WorkerUnderTest):
    function_id = f"killed-{secrets.token_hex(4)}"
    first = await worker.run_program("python", "quick", functionId=function_id, input={"say": "1"})
    async with aiodocker.Docker() as docker:
        for found in await containers_of(worker.worker_id):
            if found["Labels"]["nanoagent.runtime"] == "python":
                with suppress(aiodocker.DockerError):  # one that is being removed just now
                    await docker.containers.container(found["Id"]).kill()
    second = await worker.run_program("python", "quick", functionId=function_id, input={"say": "2"})
    assert (first["status"], second["status"]) == ("SUCCESS", "SUCCESS")
    assert second["stdout"] == "2\n"


@pytest.mark.parametrize("jobs", [60, pytest.param(200, marks=EXHAUSTIVE)])
async def test_many_mixed_jobs_each_have_one_result_and_leave_nothing(
    stack: EmbeddedStack, tmp_path: Path, jobs: int
):
    async with WorkerUnderTest(stack, tmp_path) as worker:
        keys = {r: await worker.upload(PROGRAMS / r, f"mixed/{r}.zip") for r in RUNTIMES}
        cases = ["quick", "quick", "exit", "files", "raise"]
        messages = []
        for number in range(jobs):
            runtime = RUNTIMES[number % 4]
            payload = {"case": cases[number % 5], "say": f"job {number}"}
            messages.append(
                worker.message(
                    functionId=f"mixed-{runtime}-{number % 2}",
                    runtime=runtime,
                    s3Key=keys[runtime],
                    input=payload,
                )
            )
        async with published_by(worker) as published:
            results = await worker.run_all(messages)
        assert sorted(published) == sorted(message["requestId"] for message in messages)
        for message, result in zip(messages, results, strict=True):
            case = message["input"]["case"]
            assert (result["status"] == "SUCCESS") == (case in {"quick", "files"}), result
            if case == "quick":
                assert result["stdout"] == message["input"]["say"] + "\n"

        async def queue_is_empty() -> bool:
            return await stack.queues.depth(queue_url=worker.queue_url) == (0, 0, 0)

        await eventually(queue_is_empty)
        assert await stack.queues.dead_letters(queue_url=worker.dead_letter_url) == []

        async def spool_is_empty() -> bool:
            return list((worker.tasks / worker.worker_id / "staging").iterdir()) == []

        await eventually(spool_is_empty)

        async def each_container_has_a_slot() -> bool:
            slots = list((worker.tasks / worker.worker_id / "slots").iterdir())
            return len(slots) == len(await containers_of(worker.worker_id))

        await eventually(each_container_has_a_slot)

        async def only_idle_processes_exist() -> bool:
            counts = [
                (await processes_in(found["Id"]), IDLE_PROCESSES[found["Labels"]["nanoagent.runtime"]])
                for found in await containers_of(worker.worker_id)
            ]
            return all(count in expected for count, expected in counts)

        await eventually(only_idle_processes_exist)
    assert await containers_of(worker.worker_id) == []
    assert not (worker.tasks / worker.worker_id).exists()


@asynccontextmanager
async def published_by(worker: WorkerUnderTest) -> AsyncIterator[list[str]]:
    """The requests whose results are published while the block runs, each as often as it is."""
    published: list[str] = []
    end = f"end-{secrets.token_hex(8)}"

    async def listen() -> None:
        async for event in listener.listen():
            if event["type"] == "pmessage":
                request_id = event["channel"].decode().removeprefix("result:")
                if request_id == end:
                    return
                if request_id.startswith("t-"):
                    published.append(request_id)

    async with worker.redis.pubsub() as listener:
        await listener.psubscribe("result:*")
        task = asyncio.create_task(listen())
        yield published
        # Redis delivers in order: whoever has heard this has heard all before it.
        await worker.redis.publish(f"result:{end}", "")
        await task


# The launcher and the supervisor; for Python and Node.js the zygote; and for each pre-created sandbox its
# init and its process that waits. There are two sandboxes, but only one in a container of Node.js without
# code (docs/adr/0025).
IDLE_PROCESSES = {"python": {7}, "nodejs": {5, 7}, "cpp": {6}, "go": {6}}


async def processes_in(container_id: str) -> int:
    async with aiodocker.Docker() as docker:
        return len((await docker.containers.container(container_id).top())["Processes"])


async def test_a_stopping_worker_finishes_what_runs_and_gives_back_the_rest(
    stack: EmbeddedStack, tmp_path: Path
):
    # One CPU and half a CPU a job: two run, the others wait.
    async with WorkerUnderTest(stack, tmp_path, {"WORKER_CPUS": "1", "FUNCTION_MAX_SHARE": "1"}) as worker:
        source = "import time; print('begun', flush=True); time.sleep(3)"
        key = await worker.upload({"main.py": source})
        messages = [worker.message(s3Key=key) for _ in range(6)]
        for message in messages:
            await stack.queues.send(json.dumps(message), queue_url=worker.queue_url)

        async def two_run() -> bool:
            return await worker.metric("worker_pool_containers", state="busy") == 2

        await eventually(two_run)
        assert await worker.agent.stop() == 0
        done = [m for m in messages if await worker.redis.exists(f"job:{m['requestId']}")]
        visible, in_flight, delayed = await stack.queues.depth(queue_url=worker.queue_url)
        assert len(done) >= 2
        assert (visible, in_flight, delayed) == (len(messages) - len(done), 0, 0)
    assert await containers_of(worker.worker_id) == []


async def test_what_a_killed_worker_left_is_removed_by_the_next(stack: EmbeddedStack, tmp_path: Path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    async with WorkerUnderTest(stack, tmp_path / "first") as killed:
        await killed.run_program("python", "quick", input={"say": "hello"})
        assert await containers_of(killed.worker_id)
        await killed.agent.kill()
        async with WorkerUnderTest(stack, tmp_path / "second"):
            assert await containers_of(killed.worker_id) == []
            assert not (killed.tasks / killed.worker_id).exists()
