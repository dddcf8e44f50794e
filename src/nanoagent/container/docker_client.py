"""A client of Docker's REST API (1.41 or newer). Podman's socket has the same API.

The address of the engine is in DOCKER_HOST, or in Docker's own context.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import aiodocker
import aiohttp
import structlog

from nanoagent.model.errors import ContainerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = structlog.get_logger(__name__)

_CALL_TIMEOUT_S: Final = 60.0
_NO_CONNECTION: Final = 900  # a status code of aiodocker, not of HTTP


@asynccontextmanager
async def _call(operation: str) -> AsyncIterator[None]:
    """Limit the time of a call, and translate its exceptions.

    Args:
        operation: What the call does, for the message; with a verb in -ing, such as "listing containers".

    Raises:
        ContainerError: The call failed.
    """
    try:
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            yield
    except TimeoutError as exc:
        raise ContainerError(
            f"Docker did not answer within {_CALL_TIMEOUT_S:.0f} s while {operation}"
        ) from exc
    except aiodocker.DockerError as exc:
        verb = "cannot be reached" if exc.status == _NO_CONNECTION else "refused"
        raise ContainerError(f"Docker {verb} while {operation}: {exc.message}") from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise ContainerError(f"Docker cannot be reached while {operation}: {exc}") from exc


class DockerClient:
    """Calls Docker. Methods raise `ContainerError`, with the client library's exception as its cause."""

    def __init__(self) -> None:
        self._docker: aiodocker.Docker | None = None

    def _connect(self) -> aiodocker.Docker:
        if self._docker is None:
            try:
                self._docker = aiodocker.Docker()
            except ValueError as exc:
                raise ContainerError(
                    "no Docker Engine was found: install one (make setup) or set DOCKER_HOST"
                ) from exc
        return self._docker

    async def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._docker is not None:
            await self._docker.close()
            self._docker = None

    # --- the engine

    async def get(self, path: str) -> dict[str, Any]:
        """Return the engine's answer to a GET request.

        Args:
            path: The path in the API, such as `info`.
        """
        docker = self._connect()
        async with _call(f"asking for /{path}"):
            return dict(await docker._query_json(path))  # noqa: SLF001 - aiodocker has no public method

    async def ping(self) -> None:
        """Check that the engine answers."""
        docker = self._connect()
        async with _call("asking for its version"):
            await docker.version()

    async def confines_with_apparmor(self) -> bool:
        """Whether the engine puts all containers under an AppArmor profile."""
        docker = self._connect()
        async with _call("asking how it confines containers"):
            options = (await docker.system.info()).get("SecurityOptions") or []
        return any("name=apparmor" in option for option in options)

    async def image_id(self, image: str) -> str:
        """Return the ID of an image. An image with other content has another ID.

        Args:
            image: The name of the image.
        """
        docker = self._connect()
        async with _call(f"looking for the image {image}"):
            try:
                return str((await docker.images.inspect(image))["Id"])
            except aiodocker.DockerError as exc:
                if exc.status == 404:
                    raise ContainerError(
                        f"the image {image} does not exist: build it (nanoagent images) or pull it"
                    ) from exc
                raise

    # --- containers

    async def create_container(self, image: str, body: dict[str, Any], name: str) -> str:
        """Create a container, without starting it; return its ID.

        Args:
            image: The name of the image, for messages.
            body: The body of `POST /containers/create`.
            name: The name of the container.
        """
        docker = self._connect()
        async with _call(f"creating a container of {image}"):
            return str((await docker.containers.create(body, name=name)).id)

    async def start_container(self, image: str, container_id: str) -> None:
        """Start a container.

        Args:
            image: The name of the image, for messages.
            container_id: The container.
        """
        docker = self._connect()
        async with _call(f"starting a container of {image}"):
            await docker.containers.container(container_id).start()

    async def inspect_container(self, container_id: str) -> dict[str, Any]:
        """Return Docker's description of a container."""
        docker = self._connect()
        async with _call("inspecting a container"):
            return dict(await docker.containers.container(container_id).show())

    async def list_containers(self, *labels: str) -> list[Any]:
        """List containers, running ones and others.

        Args:
            labels: The labels that a container must have: a name, or `name=value`.
        """
        docker = self._connect()
        async with _call("listing containers"):
            return list(await docker.containers.list(all=1, filters=json.dumps({"label": labels})))

    async def update_container(self, container_id: str, limits: dict[str, int]) -> None:
        """Change the limits of a container.

        Args:
            container_id: The container.
            limits: The body of `POST /containers/{id}/update`.
        """
        docker = self._connect()
        path = f"containers/{container_id}/update"
        async with _call("changing a container's limits"):
            await docker._query_json(path, method="POST", data=limits)  # noqa: SLF001 - as in `get`

    async def remove_container(self, container_id: str) -> None:
        """Kill and remove a container, if it exists.

        Args:
            container_id: Its ID or name.
        """
        docker = self._connect()
        async with _call("removing a container"):
            try:
                await docker.containers.container(container_id).delete(force=True, v=True)
            except aiodocker.DockerError as exc:
                # 404: the container does not exist. 409: its removal has begun.
                if exc.status not in {404, 409}:
                    raise

    async def try_to_remove_container(self, container_id: str) -> None:
        """Kill and remove a container, if it exists. A failure is logged."""
        try:
            await self.remove_container(container_id)
        except ContainerError as exc:
            log.warning("container not removed", container=container_id[:12], reason=str(exc))

    async def container_deaths(self, label: str) -> AsyncIterator[str]:
        """Yield the IDs of containers that die, as they die, until Docker's events end.

        Args:
            label: The label that the containers have.

        Raises:
            ContainerError: The events have ended.
        """
        docker = self._connect()
        subscriber = docker.events.subscribe(  # type: ignore[no-untyped-call]
            # The time of this call. By default, events begin when the request arrives at Docker. Then deaths
            # between the call and that time would be missed.
            since=f"{time.time():.6f}",
            filters=json.dumps({"type": ["container"], "event": ["die"], "label": [label]}),
        )
        try:
            while (event := await subscriber.get()) is not None:
                if event.get("Action") == "die":
                    yield str(event.get("Actor", {}).get("ID", ""))
        finally:
            # If the reader of events has failed, stop() raises its error again.
            with suppress(aiodocker.DockerError, aiohttp.ClientError, OSError):
                await docker.events.stop()  # type: ignore[no-untyped-call]
        raise ContainerError("Docker's events ended")
