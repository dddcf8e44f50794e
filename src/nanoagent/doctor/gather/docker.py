"""Facts about Docker: the engine, the images, and the isolation that a container could provide."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nanoagent.container import isolation
from nanoagent.container.docker import DockerDriver
from nanoagent.container.worker_home import WorkerHome
from nanoagent.doctor.facts import Engine, Image
from nanoagent.doctor.gather.answers import DEADLINE_S, message_of
from nanoagent.model.errors import ConfigError, NanoAgentError
from nanoagent.model.job import Runtime
from nanoagent.wiring import containers

if TYPE_CHECKING:
    from nanoagent.config import Settings
    from nanoagent.container.docker_client import DockerClient

_CONTAINER_DEADLINE_S: Final = 20.0  # 0.5 s were measured; a machine under load takes several seconds
_SOURCES: Final = Path(__file__).parents[4]


async def collect(settings: Settings) -> Engine:
    """Collect all facts about Docker."""
    driver = DockerDriver()
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    try:
        async with asyncio.timeout(DEADLINE_S):
            version, info = await driver.client.get("version"), await driver.client.get("info")
            asked_at = time.time()
        images = await _images(settings, driver.client)
        found, problem = await _isolation(settings, driver)
    except TimeoutError:
        return Engine(address, problem=f"Docker did not answer within {DEADLINE_S:.0f} s")
    except Exception as exc:  # noqa: BLE001 - any failure is recorded as a fact
        return Engine(address, problem=message_of(exc))
    finally:
        await driver.close()
    return Engine(
        address=address,
        socket_mode=_mode_of(address),
        version=version,
        info=info,
        info_at=asked_at,
        images=images,
        isolation=found,
        isolation_problem=problem,
    )


def _mode_of(address: str) -> int | None:
    if not address.startswith("unix://"):
        return None
    try:
        return stat.S_IMODE(Path(address.removeprefix("unix://")).stat().st_mode)
    except OSError:
        return None


# --- images


async def _images(settings: Settings, client: DockerClient) -> dict[Runtime, Image]:
    base_id = None
    if (base := await asyncio.to_thread(base_tag)) is not None:
        base_id = (await _inspect(client, base)).get("Id")
    images = {}
    for runtime in Runtime:
        name = settings.image(runtime)
        answer = await _inspect(client, name)
        labels = (answer.get("Config") or {}).get("Labels") or {}
        expected = await asyncio.to_thread(content_of, runtime, str(base_id)) if base_id else None
        images[runtime] = Image(name, labels.get("nanoagent.content"), expected, answer.get("problem"))
    return images


async def _inspect(client: DockerClient, image: str) -> dict[str, Any]:
    """Return Docker's description of an image, or `{"problem": ...}`."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await client.get(f"images/{image}/json")
    except TimeoutError:
        return {"problem": f"Docker did not answer within {DEADLINE_S:.0f} s"}
    except NanoAgentError as exc:
        is_missing = getattr(exc.__cause__, "status", None) == 404
        return {"problem": f"the image {image} does not exist" if is_missing else message_of(exc)}


def base_tag() -> str | None:
    """Return the name of the base image that scripts/images uses; None if the sources are not here."""
    if not (_SOURCES / "scripts/images").exists():
        return None
    return f"nanoagent-base:{_content_hash(platform.machine(), 'docker/base')}"


def content_of(runtime: Runtime, base_id: str) -> str:
    """Return the label that scripts/images would give to a runtime's image, from the sources here."""
    shared = ("docker/system", "docker/supervisor", "src/nanosupervisor")
    return _content_hash(base_id, f"docker/{runtime}", *shared)


def _content_hash(salt: str, *folders: str) -> str:
    """Return the same hash as `content_hash` in scripts/images."""
    files = sorted(
        str(path.relative_to(_SOURCES))
        for folder in folders
        for path in (_SOURCES / folder).rglob("*")
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    )
    modes = [f"{name} {stat.S_IMODE((_SOURCES / name).stat().st_mode):o}" for name in files]
    sums = [f"{hashlib.sha256((_SOURCES / name).read_bytes()).hexdigest()}  {name}" for name in files]
    return hashlib.sha256("".join(f"{line}\n" for line in (salt, *modes, *sums)).encode()).hexdigest()[:12]


# --- isolation


async def _isolation(
    settings: Settings, driver: DockerDriver
) -> tuple[isolation.HostIsolation | None, str | None]:
    """Test the isolation with a container, as the worker does at its start.

    Returns:
        The isolation, or the reason why it could not be tested.
    """
    root = settings.docker_work_dir_root
    created: list[Path] = []
    home = WorkerHome(root, f"doctor-{os.getpid()}")
    try:
        created += [path for path in (root, *root.parents) if not path.exists()]
        home.claim()
        async with asyncio.timeout(_CONTAINER_DEADLINE_S):
            confines = await driver.client.confines_with_apparmor()
            profile = settings.container_apparmor_profile if confines else None
            return await isolation.probe(
                driver, home, containers.pool_policy(settings), apparmor=profile
            ), None
    except TimeoutError:
        return None, f"no container started within {_CONTAINER_DEADLINE_S:.0f} s"
    except ConfigError as exc:
        return None, "; ".join(exc.problems)
    except Exception as exc:  # noqa: BLE001 - any failure is recorded as a fact
        return None, f"no container can be created: {message_of(exc)}"
    finally:
        home.release()
        _remove(created)


def _remove(folders: list[Path]) -> None:
    """Remove the folders that the test has created, the innermost first."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:  # another process uses the folder now
            break
