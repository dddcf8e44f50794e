"""Facts of the host, of Docker and of the services: looked at and asked, never judged.

Every question has a deadline, and whatever goes wrong with one is its answer: nothing here raises.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import platform
import secrets
import stat
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanoagent import wiring
from nanoagent.aws import clients as aws
from nanoagent.common.units import MIB
from nanoagent.container import isolation
from nanoagent.container.docker import DockerDriver
from nanoagent.container.work_directory import WorkerHome
from nanoagent.doctor import facts, results
from nanoagent.doctor.cloud import redrive_target
from nanoagent.doctor.facts import Answer, Engine, Folder, Host, Image
from nanoagent.doctor.host import DOCKER_ROOT
from nanoagent.host import private_dirs, resources
from nanoagent.model.errors import ConfigError, NanoAgentError
from nanoagent.model.job import Runtime
from nanoagent.results.base import Claim
from nanoagent.results.failures import RedisCallError
from nanoagent.telemetry.cloudwatch import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from nanoagent.aws.clients import AwsClients
    from nanoagent.config import Settings
    from nanoagent.results.redis import RedisResultStore

DEADLINE_S: Final = 5.0
"""For one question."""
_LEVEL_DEADLINE_S: Final = 20.0  # a container is made: 0.5 s here, several on a machine under load
_FILE_BYTES: Final = MIB  # mountinfo has a line for each container
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES: Final = 512  # struct timex has 208; all zero asks and sets nothing
_SOURCES: Final = Path(__file__).parents[3]


# --- the host


def host(settings: Settings, root: Path = Path("/")) -> Host:
    """Everything that is looked at on this machine.

    Args:
        settings: Those in use, for the folders.
        root: What to take for the root of the file system, for its files.
    """
    files = _read_all(root, facts.FILES)
    unified = Host(files, "").cgroup_mounts.get("")
    if unified is not None:
        files |= _read_all(root, [f"{unified}/cgroup.controllers"])
    known = platform.uname()
    mounts = facts.mounts_of(files.get(facts.MOUNTINFO, ""))
    return Host(
        files=files,
        release=known.release,
        machine=known.machine,
        uid=os.geteuid(),
        open_files=resources.hard_descriptor_limit(),  # the worker raises its soft limit to it
        now=time.time(),
        kept=_clock_is_kept(),
        folders=(
            folder("CODE_CACHE_DIR", settings.code_cache_dir.absolute(), mounts),
            folder("DOCKER_WORK_DIR_ROOT", settings.docker_work_dir_root.absolute(), mounts),
        ),
    )


def with_docker_root(seen: Host, engine: Engine) -> Host:
    """The host, with the folder that Docker keeps images and containers in, if it is on this machine."""
    path = engine.info.get("DockerRootDir")
    if not path or not engine.address.startswith("unix://"):
        return seen
    return replace(seen, folders=(*seen.folders, folder(DOCKER_ROOT, Path(str(path)), seen.mounts)))


def _read_all(root: Path, paths: tuple[str, ...] | list[str]) -> dict[str, str]:
    return {path: text for path in paths if (text := _read(root / path.lstrip("/"))) is not None}


def _read(path: Path) -> str | None:
    try:
        if path.is_symlink():
            return str(path.readlink())
        with path.open("rb") as file:
            return file.read(_FILE_BYTES).decode(errors="replace")
    except OSError:
        return None


def _clock_is_kept() -> bool | None:
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR  # a unit may forbid even to ask


def folder(name: str, path: Path, mounts: list[facts.Mount]) -> Folder:
    """A place on the disk, or where it will be."""
    try:
        nearest = path
        while not nearest.exists():
            nearest = nearest.parent
        nearest = nearest.resolve()
        space = os.statvfs(nearest)
        device = nearest.stat().st_dev
        if name != DOCKER_ROOT and (refused := private_dirs.unusable(path, name)) is not None:
            return Folder(name, str(path), refused=refused)
    except OSError as exc:
        return Folder(name, str(path), problem=f"it cannot be looked at: {exc.strerror}")
    return Folder(
        name=name,
        path=str(path),
        nearest=str(nearest),
        mount=facts.mount_of(str(nearest), mounts),
        device=device,
        free_bytes=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail if space.f_files else None,
        writable=os.access(nearest, os.W_OK | os.X_OK),
    )


# --- Docker


async def engine(settings: Settings) -> Engine:
    """What Docker says of itself, of the images, and what isolation can be had of it."""
    driver = DockerDriver()
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        async with asyncio.timeout(DEADLINE_S):
            version, info = await driver.ask("version"), await driver.ask("info")
            asked_at = time.time()
        images = await _images(settings, driver)
        level, level_problem = await _level(settings, driver)
    except TimeoutError:
        return Engine(address, problem=f"Docker did not answer within {DEADLINE_S:.0f} s")
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is why nothing is known
        return Engine(address, problem=_said(exc))
    finally:
        await driver.close()
    return Engine(
        address=address,
        socket_mode=_mode_of(address),
        version=version,
        info=info,
        info_at=asked_at,
        images=images,
        level=level,
        level_problem=level_problem,
    )


def _mode_of(address: str) -> int | None:
    if not address.startswith("unix://"):
        return None
    try:
        return stat.S_IMODE(Path(address.removeprefix("unix://")).stat().st_mode)
    except OSError:
        return None


async def _images(settings: Settings, driver: DockerDriver) -> dict[Runtime, Image]:
    base_id = None
    if (base := await asyncio.to_thread(base_tag)) is not None:
        base_id = (await _inspect(driver, base)).get("Id")
    found = {}
    for runtime in Runtime:
        name = settings.image(runtime)
        answer = await _inspect(driver, name)
        labels = (answer.get("Config") or {}).get("Labels") or {}
        expected = await asyncio.to_thread(content_of, runtime, str(base_id)) if base_id else None
        found[runtime] = Image(name, labels.get("nanoagent.content"), expected, answer.get("problem"))
    return found


async def _inspect(driver: DockerDriver, image: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await driver.ask(f"images/{image}/json")
    except TimeoutError:
        return {"problem": f"Docker did not answer within {DEADLINE_S:.0f} s"}
    except NanoAgentError as exc:
        missing = getattr(exc.__cause__, "status", None) == 404
        return {"problem": f"the image {image} is not there" if missing else _said(exc)}


def base_tag() -> str | None:
    """The base image that scripts/images would build on; None where the sources are not at hand."""
    if not (_SOURCES / "scripts/images").exists():
        return None
    return f"nanoagent-base:{_content_hash(platform.machine(), 'docker/base')}"


def content_of(runtime: Runtime, base_id: str) -> str:
    """The label that scripts/images would give a runtime's image, with the sources as they are."""
    shared = ("docker/system", "docker/supervisor", "src/nanosupervisor")
    return _content_hash(base_id, f"docker/{runtime}", *shared)


def _content_hash(salt: str, *places: str) -> str:
    files = sorted(
        str(path.relative_to(_SOURCES))
        for place in places
        for path in (_SOURCES / place).rglob("*")
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    )
    modes = [f"{name} {stat.S_IMODE((_SOURCES / name).stat().st_mode):o}" for name in files]
    sums = [f"{hashlib.sha256((_SOURCES / name).read_bytes()).hexdigest()}  {name}" for name in files]
    return hashlib.sha256("".join(f"{line}\n" for line in (salt, *modes, *sums)).encode()).hexdigest()[:12]


async def _level(settings: Settings, driver: DockerDriver) -> tuple[isolation.Verdict | None, str | None]:
    """What the worker would find at its start, by the same probe; its folder is removed again."""
    root = settings.docker_work_dir_root
    missing: list[Path] = []
    home = WorkerHome(root, f"doctor-{os.getpid()}")
    try:
        missing += [path for path in (root, *root.parents) if not path.exists()]
        home.claim()
        async with asyncio.timeout(_LEVEL_DEADLINE_S):
            confines = await driver.confines_with_apparmor()
            profile = settings.container_apparmor_profile if confines else None
            return await isolation.probe(driver, home, wiring.pool_policy(settings), apparmor=profile), None
    except TimeoutError:
        return None, f"no container came up within {_LEVEL_DEADLINE_S:.0f} s"
    except ConfigError as exc:
        return None, "; ".join(exc.problems)
    except Exception as exc:  # noqa: BLE001 - as in `engine`
        return None, f"no container can be made: {_said(exc)}"
    finally:
        home.release()
        for path in missing:
            try:
                path.rmdir()
            except OSError:  # somebody else's by now
                break


# --- the services


async def ask(call: Callable[[], Awaitable[Any]]) -> Answer:
    """Make one call, within the deadline."""
    asked_at, begun = time.time(), time.monotonic()
    code, message, data = None, "", None
    try:
        async with asyncio.timeout(DEADLINE_S):
            data = await call()
        source: Any = data
    except TimeoutError as exc:
        code, source = "TimeoutError", exc
        message = str(exc) or f"no answer within {DEADLINE_S:.0f} s"
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is the answer
        cause = exc.__cause__ if isinstance(exc, NanoAgentError) and exc.__cause__ else exc
        code, message, source = aws.error_code(cause), _said(cause), getattr(cause, "response", None)
        if isinstance(source, dict):
            message = str(source.get("Error", {}).get("Message") or message)
    return Answer(code, message, _date_of(source), asked_at, time.monotonic() - begun, data)


def _date_of(source: Any) -> str | None:
    try:
        return str(source["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (TypeError, KeyError):
        return None


def _said(exc: BaseException) -> str:
    said = str(exc).strip()
    status = getattr(exc.__cause__, "status", None)
    if (
        said.endswith(":") and status is not None
    ):  # an engine, or what sits in its place, that gives no reason
        return f"{said} HTTP status {status}"
    return said or type(exc).__name__


async def sqs(settings: Settings, clients: AwsClients) -> dict[str, Answer]:
    """The queue's answers; without the first, the others are not asked for."""
    where = {"QueueUrl": settings.sqs_queue_url}
    no_handle = {**where, "ReceiptHandle": f"nanoagent-doctor-{secrets.token_hex(8)}"}
    client: Any = None

    async def attributes() -> Any:
        nonlocal client
        client = await clients.sqs()
        return await client.get_queue_attributes(**where, AttributeNames=["All"])

    answers = {"attributes": await ask(attributes)}
    first = answers["attributes"]
    if client is None or first.code in {"TimeoutError", "EndpointConnectionError", "ConnectTimeoutError"}:
        return answers
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "delete": lambda: client.delete_message(**no_handle),
        "change": lambda: client.change_message_visibility(**no_handle, VisibilityTimeout=0),
        "receive": lambda: client.receive_message(**where, MaxNumberOfMessages=11),
    }
    target = _account_and_name(settings.sqs_dlq_url) if settings.sqs_dlq_url else redrive_target(first.data)
    if target is not None:
        account, name = target
        questions["dead letters"] = lambda: client.get_queue_url(
            QueueName=name, QueueOwnerAWSAccountId=account
        )
    return answers | await _ask_all(questions)


def _account_and_name(url: str) -> tuple[str, str] | None:
    parts = url.rstrip("/").rsplit("/", 2)
    return (parts[1], parts[2]) if len(parts) == 3 and parts[1].isdecimal() else None


async def _ask_all(questions: Mapping[str, Callable[[], Awaitable[Any]]]) -> dict[str, Answer]:
    answers = await asyncio.gather(*map(ask, questions.values()))
    return dict(zip(questions, answers, strict=True))


async def code_bucket(settings: Settings, clients: AwsClients) -> Answer:
    """What comes of getting a key that is not there."""
    key = f".nanoagent-doctor-{secrets.token_hex(8)}"
    return await ask(lambda: _got(clients, settings.s3_code_bucket, key))


async def _got(clients: AwsClients, bucket: str, key: str) -> Any:
    answer = await (await clients.s3()).get_object(Bucket=bucket, Key=key)
    answer["Body"].close()
    return answer


async def bucket_regions(clients: AwsClients, buckets: Iterable[str]) -> dict[str, str | None]:
    """The regions of buckets, where S3 tells them."""
    try:
        client = await clients.s3()
    except NanoAgentError:  # the other questions report errors in the client's settings
        return {}
    names = sorted(set(buckets))
    return dict(zip(names, await asyncio.gather(*(_region(client, name) for name in names)), strict=True))


async def _region(client: Any, bucket: str) -> str | None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await aws.bucket_region(client, bucket)
    except TimeoutError:
        return None


async def data_bucket(settings: Settings, clients: AwsClients, prefix: str) -> tuple[Answer, Answer | None]:
    """What comes of beginning a multipart upload, and of giving it up."""
    where = {
        "Bucket": settings.s3_user_data_bucket,
        "Key": f"{prefix}.nanoagent-doctor-{secrets.token_hex(8)}",
    }

    async def begin() -> Any:
        return await (await clients.s3()).create_multipart_upload(**where)

    async def give_up() -> Any:
        return await (await clients.s3()).abort_multipart_upload(**where, UploadId=begun.data["UploadId"])

    begun = await ask(begin)
    return begun, None if begun.code is not None else await ask(give_up)


async def credentials(clients: AwsClients) -> aws.Credentials | None:
    """The credentials that sign links; None without any, which the services' answers report."""
    answer = await ask(clients.credentials)
    return answer.data if isinstance(answer.data, aws.Credentials) else None


async def cloudwatch(clients: AwsClients) -> Answer:
    """What comes of metric data without a datum."""

    async def put() -> Any:
        return await (await clients.cloudwatch()).put_metric_data(Namespace=NAMESPACE, MetricData=[])

    return await ask(put)


async def redis(settings: Settings) -> dict[str, Answer]:
    """What Redis says to what the worker does: with keys of its own, which live for a second."""
    async with AsyncExitStack() as opened:
        result_store = wiring.redis_result_store(settings.model_copy(update={"result_ttl_seconds": 1}))
        opened.push_async_callback(result_store.close)
        answers = {
            "verify": await ask(lambda: _verified(result_store)),
            "ping": await ask(lambda: result_store.ask("PING")),
        }
        if answers["ping"].code is None:
            answers |= await _ask_all(_redis_questions(result_store))
        return answers


async def _verified(result_store: RedisResultStore) -> RedisCallError | None:
    """The failure that the worker would see at its start."""
    try:
        await result_store.verify()
    except RedisCallError as exc:
        return exc
    return None


def _redis_questions(result_store: RedisResultStore) -> dict[str, Callable[[], Awaitable[Any]]]:
    name = f"nanoagent-doctor-{secrets.token_hex(8)}"
    failures = f"nanoagent:failed:{name}"
    questions: dict[str, Callable[[], Awaitable[Any]]] = {
        "info": lambda: result_store.ask("INFO", "everything"),
        "setex": lambda: result_store.ask("SETEX", f"job:{name}", 1, "doctor"),
        "get": lambda: result_store.ask("GET", f"job:{name}"),
        "publish": lambda: result_store.ask("PUBLISH", f"result:{name}", "doctor"),
        "sadd": lambda: _added(result_store, failures),
        "scard": lambda: result_store.ask("SCARD", failures),
        "expire": lambda: result_store.ask("EXPIRE", failures, 1),
        "eval": lambda: _answered(result_store, f"{name}-claim"),
    }
    assert {"info", *results.COMMANDS} == set(questions)  # noqa: S101 - the two lists are one
    return questions


async def _answered(result_store: RedisResultStore, name: str) -> Any:
    """A request of nobody's, claimed and answered; the claim goes with that, the answer a second later."""
    claim = await result_store.claim(name)
    return isinstance(claim, Claim) and await result_store.publish(claim, b"doctor")


async def _added(result_store: RedisResultStore, failures: str) -> Any:
    """SADD leaves a key without an end: it is given one; where EXPIRE is refused, there is no SADD."""
    await result_store.ask("EXPIRE", failures, 1)
    try:
        return await result_store.ask("SADD", failures, "doctor")
    finally:
        await result_store.ask("EXPIRE", failures, 1)
