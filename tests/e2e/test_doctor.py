"""The doctor as a person calls it: on a sound stack, on one that refuses, and on one that is silent."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from redis import asyncio as redis

from nanoagent.doctor.finding import Area
from support.agents.ordinary_user import place_of_its_own, python_of
from support.agents.worker import WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.dev.local_services import EmbeddedStack

DEADLINE_S = 120  # a hang is a failure; nothing is measured by it
WELL = {"ok", "note"}
SERVICES = (Area.SQS, Area.S3, Area.CLOUDWATCH, Area.REDIS)
# Cannot be tested without a message; see nanoagent.doctor.judge.sqs.
UNTRIED = ("sqs:ReceiveMessage was not refused", "sqs:SendMessage to the dead-letter queue was not tested")


def environment_of(stack: EmbeddedStack, folder: Path) -> dict[str, str]:
    worker = WorkerUnderTest(stack, folder)
    return worker.environment() | {
        "SQS_QUEUE_URL": stack.queue_url,
        "CODE_CACHE_DIR": str(folder / "cache"),
        "DOCKER_WORK_DIR_ROOT": "/tmp/nanoagent-tests",
        "PATH": "/usr/bin:/bin",
    }


async def examine(
    environment: dict[str, str], folder: Path, *options: str, program: str = sys.executable
) -> tuple[int | None, str, str]:
    """The command's exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(program, "-m", "nanoagent", "doctor", *options),
        env=environment,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE_S):
        said, complained = await process.communicate()
    return process.returncode, said.decode(), complained.decode()


def said_of(
    document: dict[str, Any], area: Area, *, but: set[str] | frozenset[str] = frozenset()
) -> list[str]:
    """Verdict and words of an area's findings, those with certain verdicts left out."""
    return [
        f"{found['verdict']}: {found['found']}"
        for found in document["findings"]
        if found["area"] == area and found["verdict"] not in but
    ]


def assert_isolation_was_tried(document: dict[str, Any]) -> None:
    (said,) = said_of(document, Area.ISOLATION)
    assert said.startswith(("ok: a sandbox for each run (L2)", "warning: runs of one function share"))


async def uploads(stack: EmbeddedStack) -> list[Any]:
    async with stack.clients() as clients:
        answer = await (await clients.s3()).list_multipart_uploads(Bucket=stack.data_bucket)
    return list(answer.get("Uploads", []))


def containers() -> set[str]:
    """Those of doctors; a probe's container is named in a label by the folder that it is made in."""
    done = subprocess.run(
        ["docker", "ps", "-a", "--format", '{{.Label "nanoagent.home"}}'],
        capture_output=True,
        text=True,
        check=True,
    )
    return {line for line in done.stdout.split() if "/doctor-" in line}


async def test_a_sound_stack_is_found_sound_and_left_as_it_was(stack: EmbeddedStack, tmp_path: Path):
    await stack.queues.send("a message that nobody takes")
    before = await stack.queues.depth(), await stack.buckets.keys(stack.data_bucket)
    code, said, complained = await examine(environment_of(stack, tmp_path), tmp_path, "--json")
    document = json.loads(said)
    assert (code, document["ok"], complained) == (0, True, ""), said
    for area in SERVICES:
        left = [
            text for text in said_of(document, area, but=WELL) if not any(map(text.__contains__, UNTRIED))
        ]
        assert left == []
    assert_isolation_was_tried(document)
    assert said_of(document, Area.SETTINGS) == ["ok: all settings are valid (nanoagent check shows them)"]
    assert "ok: within a few seconds of AWS" in said_of(document, Area.CLOCK)
    assert len(said_of(document, Area.DISK)) >= 3
    # --- nothing is left
    assert (await stack.queues.depth(), await stack.buckets.keys(stack.data_bucket)) == before
    assert await uploads(stack) == []
    assert containers() == set()
    assert list(Path("/tmp/nanoagent-tests").glob("doctor-*")) == []
    assert not (tmp_path / "cache").exists()
    async with redis.Redis(host=stack.redis_host, port=stack.redis_port) as client:
        for key in await client.keys("*nanoagent-doctor-*"):
            assert await client.ttl(key) <= 1


async def test_an_ordinary_user_may_be_examined(stack: EmbeddedStack):
    with place_of_its_own() as place:
        environment = environment_of(stack, place) | {"DOCKER_WORK_DIR_ROOT": str(place / "tasks")}
        program = python_of(place)
        code, said, complained = await examine(environment, place, "--json", program=str(program))
        document = json.loads(said)
        assert (code, complained) == (0, ""), said
        assert list((place / "tasks").iterdir()) == []
    assert any("this user may not write" in text for text in said_of(document, Area.CGROUPS))
    assert_isolation_was_tried(document)


# --- a stack that refuses


def _text(words: str) -> bytes:
    """A text of up to 255 bytes in CBOR (RFC 8949, 3.1)."""
    encoded = words.encode()
    return b"\x78" + bytes([len(encoded)]) + encoded


@asynccontextmanager
async def refusing_aws() -> AsyncIterator[str]:
    """An AWS that lets nobody do anything, and whose clock is ten minutes ahead."""

    async def refuse(request: web.Request) -> web.Response:
        date = {"Date": formatdate(time.time() + 600, usegmt=True)}
        said = "User: arn:aws:iam::1:user/w is not authorized to perform: {} on resource: arn:x"
        if target := request.headers.get("X-Amz-Target"):  # SQS
            action = f"sqs:{target.rpartition('.')[2].lower()}"
            body = {"__type": "com.amazonaws.sqs#AccessDenied", "message": said.format(action)}
            return web.json_response(
                body, status=403, headers=date, content_type="application/x-amz-json-1.0"
            )
        if "/operation/" in request.path:  # CloudWatch
            fields = {
                "__type": "com.amazonaws.cloudwatch#AccessDenied",
                "message": said.format("cloudwatch:PutMetricData"),
            }
            body_ = b"\xa2" + b"".join(map(_text, [word for pair in fields.items() for word in pair]))
            headers = date | {"smithy-protocol": "rpc-v2-cbor"}
            return web.Response(body=body_, status=403, headers=headers, content_type="application/cbor")
        # S3, which does not name the action across accounts; and one that quotes what it is sent
        code, words = "AccessDenied", "Access Denied"
        if "/logs/" in request.path:
            token, signature = (
                request.headers.get(name) for name in ("X-Amz-Security-Token", "Authorization")
            )
            code, words = "Odd", f"who is {token}? {signature}"
        error = f"<Error><Code>{code}</Code><Message>{words}</Message></Error>"
        return web.Response(text=error, status=403, headers=date, content_type="application/xml")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", refuse)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_refusal_is_shown_with_its_remedy_and_without_a_secret(stack: EmbeddedStack, tmp_path: Path):
    user, password = f"weak-{secrets.token_hex(4)}", f"canary-{secrets.token_hex(8)}"
    async with redis.Redis(host=stack.redis_host, port=stack.redis_port) as admin, refusing_aws() as aws:
        await admin.execute_command(
            *(
                "ACL",
                "SETUSER",
                user,
                "on",
                f">{password}",
                "~job:*",
                "&*",
                "+ping",
                "+select",
                "+get",
                "+setex",
            )
        )
        try:
            names = [name for name in stack.environment() if name.startswith("AWS_ENDPOINT_URL")]
            environment = environment_of(stack, tmp_path) | dict.fromkeys(names, aws)
            environment |= {
                "SQS_QUEUE_URL": f"{aws}/123456789012/jobs",
                "AWS_ACCESS_KEY_ID": "canary-key-id",
                "AWS_SECRET_ACCESS_KEY": "canary-secret-key",
                "AWS_SESSION_TOKEN": "canary-session-token",
                "REDIS_USERNAME": user,
                "REDIS_PASSWORD": password,
                "AI_ENDPOINT": "http://me:canary-ai@ai.example",
                "DOCKER_HOST": "tcp://root:canary-docker@127.0.0.1:1",
            }
            code, said, complained = await examine(environment, tmp_path, "--json")
        finally:
            await admin.execute_command("ACL", "DELUSER", user)
    document = json.loads(said)
    assert (code, document["ok"], complained) == (1, False, ""), said
    assert "canary" not in said
    assert "Traceback" not in said
    assert said_of(document, Area.SQS) == [
        f"problem: sqs:{action} on the queue jobs is refused"
        for action in ("getqueueattributes", "deletemessage", "changemessagevisibility", "receivemessage")
    ]
    assert [text.partition(":")[0] for text in said_of(document, Area.S3)] == [
        "unknown",
        "problem",
        "unknown",
    ]
    assert any("who is ***?" in text for text in said_of(document, Area.S3))
    assert said_of(document, Area.CLOUDWATCH) == ["problem: cloudwatch:PutMetricData is refused"]
    assert any(
        text.startswith("problem: PUBLISH, SADD, SCARD, EXPIRE, EVAL refused")
        for text in said_of(document, Area.REDIS)
    )
    assert [text[:16] for text in said_of(document, Area.DOCKER)] == ["problem: Docker "]
    assert any("s behind the clock of AWS" in text for text in said_of(document, Area.CLOCK))
    for found in document["findings"]:
        assert found["verdict"] not in {"problem", "warning"} or found["remedy"], found


# --- a stack that is not there


@asynccontextmanager
async def silence(folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """A port and a socket at which somebody listens, and nobody ever answers."""
    path = folder / "silent.sock"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(path))
        local.listen()
        yield server.getsockname()[1], path


async def test_the_doctor_does_not_wait_for_silent_services_and_reports_a_missing_queue(
    stack: EmbeddedStack, tmp_path: Path
):
    async with silence(tmp_path) as (port, path):
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_CLOUDWATCH")
        environment = environment_of(stack, tmp_path) | dict.fromkeys(names, f"http://127.0.0.1:{port}")
        environment |= {
            "SQS_QUEUE_URL": f"{stack.queue_url}-of-yesterday",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
            "DOCKER_HOST": f"unix://{path}",
        }
        code, said, complained = await examine(environment, tmp_path, "--json")
    document = json.loads(said)
    assert (code, complained) == (1, ""), said
    assert said_of(document, Area.DOCKER) == ["problem: Docker did not answer within 5 s"]
    for area in (Area.S3, Area.CLOUDWATCH, Area.REDIS):
        assert said_of(document, area), area
        for text in said_of(document, area):
            assert text.startswith(("problem: ", "warning: ")), text
            assert "no answer within 5 s" in text or "TimeoutError" in text, text
    said_of_queue = (
        "problem: the queue nanoagent-jobs-of-yesterday does not exist in ap-northeast-2, "
        "or the worker's role has no access to it"
    )
    assert said_of(document, Area.SQS) == [said_of_queue]


async def test_without_settings_the_host_is_examined_all_the_same(tmp_path: Path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "DOCKER_HOST": "unix:///nonexistent/docker.sock",
        "REDIS_PORT": "1",
    }
    code, said, complained = await examine(environment, tmp_path)
    assert (code, complained) == (2, "")
    lines = said.splitlines()
    assert (
        "problem: settings: SQS_QUEUE_URL: is not set; it should be the queue that jobs are taken from"
        in lines
    )
    assert f"Linux {os.uname().release}" in said
    assert "unknown: SQS: not asked: SQS_QUEUE_URL cannot be used" in lines
    assert "Traceback" not in said
