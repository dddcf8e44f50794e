"""Finds leftovers of jobs and workers, from outside."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from nanoagent.container.spec import LABEL_WORKER

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence
    from pathlib import Path

    from redis import asyncio as redis

    from nanoagent.dev.local_services import EmbeddedStack

# Each run has a unique name. Its log and its files contain the name.
MARKED_PROGRAM: Final = (
    "import json, os, sys, time, uuid\n"
    "name, wanted = str(uuid.uuid4()), json.loads(os.environ['PAYLOAD'])\n"
    "for number in range(wanted.get('files', 3)):\n"
    "    with open(f'/output/{number}.txt', 'w') as file:\n"
    "        file.write(name)\n"
    "time.sleep(wanted.get('seconds', 1))\n"
    "print(name)\n"
    "sys.exit(wanted.get('code', 0))\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The places of possible leftovers.

    Attributes:
        stack: The services with the queues.
        queue_url: The queue of the jobs.
        dead_letter_url: Its dead-letter queue.
        redis: A client of Redis itself, not of a proxy.
        work_root: DOCKER_WORK_DIR_ROOT.
        cache: CODE_CACHE_DIR.
    """

    stack: EmbeddedStack
    queue_url: str
    dead_letter_url: str
    redis: redis.Redis
    work_root: Path
    cache: Path


async def leftovers_of(
    places: Places, requests: Iterable[str], workers: Iterable[str], *, given_up: Container[str] = ()
) -> list[str]:
    """Return the leftovers of answered requests and of ended workers.

    Args:
        places: The places of possible leftovers.
        requests: The request IDs.
        workers: The IDs of the ended workers.
        given_up: The requests that may be in the dead-letter queue.
    """
    found = []
    visible, in_flight, delayed = await places.stack.queues.depth(queue_url=places.queue_url)
    if visible or in_flight or delayed:
        found.append(f"messages: {visible} visible, {in_flight} in flight, {delayed} delayed")
    letters = await places.stack.queues.dead_letters(queue_url=places.dead_letter_url)
    found += [
        f"dead letter: {letter['body']} {letter['attributes']}"
        for letter in letters
        if json.loads(letter["body"])["requestId"] not in given_up
    ]
    found += await claims_of(places.redis, requests)
    results = places.cache / "results"
    found += [f"in the spool: {path.name}" for path in (results.iterdir() if results.is_dir() else ())]
    for worker in workers:
        home = places.work_root / worker
        if home.exists():
            found.append(f"folder: {home}, with {sorted(path.name for path in home.iterdir())}")
        found += [f"container: {name} of {worker}" for name in await containers_of(worker)]
    return found


async def claims_of(client: redis.Redis, requests: Iterable[str]) -> list[str]:
    """Return the claims that are still held, or that were never taken over.

    Redis remembers a claim that was taken over for a day, to refuse a late answer. Such a claim is not held.
    """
    found = []
    for request_id in requests:
        claim = await client.hgetall(f"nanoagent:claim:{request_id}")
        if claim and (claim[b"until"] != b"0" or claim[b"others"] == b"0"):
            found.append(f"claim of {request_id}: {claim}")
    return found


async def containers_of(worker: str, *, host: str | None = None) -> list[str]:
    """Return the names of a worker's containers, running or not."""
    where = ["--host", host] if host else []
    command = ["docker", *where, "ps", "--all", "--filter", f"label={LABEL_WORKER}={worker}"]
    process = await asyncio.create_subprocess_exec(
        *command, "--format", "{{.Names}}", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return said.decode().split()


async def wrong_outputs(
    stack: EmbeddedStack, results: Iterable[dict[str, Any]], files: Callable[[str], int] = lambda _: 3
) -> list[str]:
    """Return the output files that do not match their results, for marked programs.

    Such a program writes the unique name of its run to its log and to every file.

    Args:
        stack: The services with the files.
        results: The results.
        files: Request → the expected number of files.
    """
    found = []
    async with stack.clients() as clients:
        store = await clients.s3()
        for result in results:
            request_id, name, links = result["requestId"], result["stdout"].strip(), result["outputFiles"]
            if len(links) != files(request_id):
                found.append(f"{request_id}: {len(links)} links instead of {files(request_id)}")
            for link in links:
                bucket, _, key = unquote(urlsplit(link).path).lstrip("/").partition("/")
                answer = await store.get_object(Bucket=bucket, Key=key)
                async with answer["Body"] as body:
                    content = (await body.read()).decode()
                if content != name:
                    found.append(f"{request_id}: {key} is of {content}, the result of {name}")
    return found


def struck_in(log: Path) -> dict[str, Any] | None:
    """Return the log line of a worker's fault; None if the fault has not occurred yet."""
    for line in log.read_text(errors="replace").splitlines():
        if '"struck"' in line:
            return dict(json.loads(line))
    return None


def said_in(logs: Sequence[Path], event: str) -> int:
    """Count a log event in the logs of workers."""
    return sum(log.read_text(errors="replace").count(f'"event": "{event}"') for log in logs if log.exists())


def story_of(logs: Sequence[Path], request_id: str) -> str:
    """Return the log lines about a request from all workers, in the order of time."""
    lines = [
        f"{line[15:41]} {log.parent.name} {line[42:400]}"
        for log in logs
        if log.exists()
        for line in log.read_text(errors="replace").splitlines()
        if request_id in line
    ]
    return "\n".join(sorted(lines))
