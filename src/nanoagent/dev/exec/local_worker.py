"""The worker's parts that run code, with an object store in local folders."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanoagent.container.docker_client import DockerClient
from nanoagent.dev import images
from nanoagent.host.background import Background
from nanoagent.jobs.attempt import Attempt
from nanoagent.jobs.executor import result_of_invalid
from nanoagent.jobs.output_names import RESERVED_FOLDER
from nanoagent.jobs.outputs import OutputUploader
from nanoagent.model import message
from nanoagent.storage.folder import FolderStore
from nanoagent.telemetry.metrics import Metrics
from nanoagent.telemetry.status import Health
from nanoagent.wiring import containers
from nanoagent.wiring.runs import new_executor, open_runs
from nanoagent.wiring.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.config import LocalSettings
    from nanoagent.container.execution import RunControl
    from nanoagent.dev.sender.package import Package
    from nanoagent.jobs.executor import Executor
    from nanoagent.model.job import Runtime
    from nanoagent.model.result import Result


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one job.

    Attributes:
        result: The result.
        document: The result document, as a worker publishes it.
    """

    result: Result
    document: bytes


class LocalStore(FolderStore):
    """An object store for the code and the outputs of one user's jobs.

    The output files of all jobs are stored in one folder, under the names that the programs gave them. Other
    uploads of a worker, such as long logs, are stored in its folder `.nanoagent`.

    Args:
        root: The folder for the code.
        output_bucket: The name of the bucket for outputs.
        output_folder: The folder for outputs. It is created for the first file.
    """

    def __init__(self, root: Path, output_bucket: str, output_folder: Path) -> None:
        super().__init__(root)
        self._output_bucket = output_bucket
        self._output_folder = output_folder

    def path(self, bucket: str, key: str) -> Path:
        """Return the path of an object. Keys of outputs are `outputs/<request>/<path>`, of logs `logs/…`."""
        if bucket != self._output_bucket:
            return super().path(bucket, key)
        kind, _, name = key.split("/", 2)
        return self._output_folder / (name if kind == "outputs" else f"{RESERVED_FOLDER}/{name}")


class LocalWorker:
    """Runs jobs on this machine. Use `opened` to make one.

    Args:
        settings: The settings.
        store: Has the code.
        executor: Runs the jobs.
        outputs: Stores output files, and makes result documents.
        image_ids: Runtime → ID of its image.
    """

    def __init__(
        self,
        settings: LocalSettings,
        store: LocalStore,
        executor: Executor,
        outputs: OutputUploader,
        image_ids: dict[Runtime, str],
    ) -> None:
        self.image_ids = image_ids
        self._settings = settings
        self._store = store
        self._executor = executor
        self._outputs = outputs

    async def answer(self, package: Package | None, body: str, control: RunControl) -> Answered:
        """Run one job, as a worker does after it has received the message.

        Args:
            package: The code; None if the store has no code, so that it cannot be found.
            body: The message of the job.
            control: Cancels the run, and follows its output.

        Raises:
            PlatformError: The function could not be run here.
            ReturnToQueue: There was no room for the function within a minute.
        """
        if package is not None:
            await asyncio.to_thread(self._store_code, package)
        try:
            job = message.parse_job(body, self._settings.job_defaults)
        except message.InvalidJob as invalid:
            result, locale = result_of_invalid(invalid, self._settings.worker_id, 1), invalid.locale
        else:
            result, locale = await self._executor.execute(Attempt(job, 1, control=control)), job.locale
        return Answered(result, await self._outputs.document(result, locale))

    def _store_code(self, package: Package) -> None:
        target = self._store.path(self._settings.s3_code_bucket, package.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        package.zip.seek(0)
        with target.open("wb") as file:
            shutil.copyfileobj(package.zip, file)


@asynccontextmanager
async def opened(settings: LocalSettings, output_folder: Path) -> AsyncIterator[LocalWorker]:
    """Open the parts that run code, and close them at the end.

    Args:
        settings: The settings.
        output_folder: The folder for output files. It is created for the first file.

    Raises:
        ConfigError: Docker, the images or the isolation level do not fit the settings.
        PlatformError: Docker cannot be asked.
    """
    settings = settings.model_copy(update={"worker_id": f"exec-{os.getpid()}"})
    async with AsyncExitStack() as resources:
        docker = DockerClient()
        resources.push_async_callback(docker.close)
        await images.build_missing(settings, docker)
        root = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="nanoagent-exec-")))
        for bucket in (settings.s3_code_bucket, settings.s3_user_data_bucket):
            (root / bucket).mkdir()
        telemetry = Telemetry(Metrics(), Health(), Background())
        store = LocalStore(root, settings.s3_user_data_bucket, output_folder)
        descriptors = containers.raise_descriptor_limit()
        runs = await open_runs(settings, store, telemetry, descriptors, resources)
        outputs = OutputUploader(store, settings, telemetry.metrics)
        executor = new_executor(settings, runs, outputs, telemetry)
        yield LocalWorker(settings, store, executor, outputs, runs.parts.image_ids)
