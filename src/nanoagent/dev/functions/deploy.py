"""The command `nanoagent deploy`: uploads a version of a function, or goes back to an earlier one."""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nanoagent.aws import clients as aws
from nanoagent.dev.functions import choices, deployment_report, records, zip_index
from nanoagent.dev.functions.choices import Choices
from nanoagent.dev.functions.output import Output, check_function_id, exit_of, no_function
from nanoagent.dev.functions.s3_records import S3Records
from nanoagent.dev.sender import delivery, dev, package, packing_report, stages
from nanoagent.dev.sender.stages import Exit
from nanoagent.model import function_record
from nanoagent.model.errors import InvalidCall, PlatformError, one_line
from nanoagent.model.function_record import (
    FunctionRecord,
    InvalidRecord,
    NewVersion,
    rolled_back,
    with_version,
)

if TYPE_CHECKING:
    from nanoagent.config import Settings
    from nanoagent.dev.functions.choices import Changes
    from nanoagent.dev.functions.records import Stored
    from nanoagent.dev.functions.zip_index import FileChanges
    from nanoagent.dev.sender.package import Package
    from nanoagent.model.function_record import FunctionSettings

_AUTHOR_CHARACTERS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of `nanoagent deploy`.

    Attributes:
        code: A folder, a source file or a zip; None for a rollback.
        function_id: The function; empty for the name of the folder.
        choices: The settings that the call names.
        author: The author of the version; empty for the user and the host.
        rollback: Whether an earlier version becomes the current one.
        version: The version of the rollback; None for the one that the current version replaced.
        follow_outside_links: Whether links to targets outside the folder are replaced with the targets.
        dry_run: Whether nothing is changed.
        as_json: Whether the output is JSON.
        env_file: The value of `--env-file`, for the commands that are proposed.
        settings_file: The file with the settings.
    """

    code: Path | None
    function_id: str = ""
    choices: Choices = field(default_factory=Choices)
    author: str = ""
    rollback: bool = False
    version: int | None = None
    follow_outside_links: bool = False
    dry_run: bool = False
    as_json: bool = False
    env_file: Path = dev.DEFAULT
    settings_file: Path = dev.DEFAULT


class _Progress(Enum):
    """Whether the record may have changed."""

    UNCHANGED = auto()
    CHANGING = auto()


def deploy(settings: Settings, call: Call) -> int:
    """Deploy code or roll back, and return the exit code."""
    deployment = _Deployment(settings, call, Output(call.as_json))
    try:
        return asyncio.run(deployment.run())
    except (InvalidCall, InvalidRecord) as exc:
        problems = exc.problems if isinstance(exc, InvalidCall) else [str(exc)]
        error = "\n  ".join(["nothing was deployed:", *problems])
        return deployment.output.fail(exit_of(exc), error)
    except PlatformError as exc:
        error = stages.service_failed(exc, call.settings_file)
        deployment.output.say(deployment.after_interruption())
        return deployment.output.fail(Exit.SERVICE_FAILED, error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        deployment.output.say(f"\n{deployment.after_interruption()}")
        raise


class _Deployment:
    """One call of the command.

    Args:
        settings: The settings, which name the code bucket.
        call: The call.
        output: The output of the command.
    """

    def __init__(self, settings: Settings, call: Call, output: Output) -> None:
        self.output = output
        self._settings = settings
        self._call = call
        self._bucket = settings.s3_code_bucket
        self._function_id = ""
        self._progress = _Progress.UNCHANGED

    async def run(self) -> Exit:
        """Carry out the command.

        Raises:
            InvalidCall: An argument or the code is invalid.
            InvalidRecord: The record of the function cannot be used.
            PlatformError: S3 failed.
        """
        changes = _check(self._call)
        self._function_id = _function_id(self._call)
        record_key = function_record.key_of(self._function_id)
        self.output.fields = {
            "functionId": self._function_id,
            "dryRun": self._call.dry_run,
            "s3Bucket": self._bucket,
            "record": record_key,
        }
        async with aws.AwsClients(self._settings.aws_region) as clients:
            store = S3Records(await clients.s3(), self._bucket)
            stored = await store.read(self._function_id)
            if self._call.rollback:
                return await self._roll_back(clients, store, stored)
            return await self._deploy(clients, store, stored, changes)

    def after_interruption(self) -> str:
        """Return what may have changed when the command stops here."""
        if self._progress is _Progress.UNCHANGED:
            return "Nothing was deployed."
        option = stages.settings_option(self._call.env_file)
        return (
            "The version may have been deployed.\n"
            f"  to see it:  nanoagent functions {shlex.quote(self._function_id)}{option}"
        )

    # --- a deployment

    async def _deploy(
        self, clients: aws.AwsClients, store: S3Records, stored: Stored | None, changes: Changes
    ) -> Exit:
        with ExitStack() as opened:
            code = replace(self._packed(opened, changes, stored), function_id=self._function_id)
            assert self._call.code is not None  # noqa: S101 - checked by `_check`
            for line in packing_report.lines(self._call.code, code, "deploy"):
                self.output.say(line)
            deployed_at, author = datetime.now(UTC), self._call.author or user_and_host()

            def changed(record: FunctionRecord | None) -> FunctionRecord:
                before = None if record is None else record.current_version.settings
                settings = changes.applied(code.runtime, before)
                choices.check(self._function_id, settings)
                return with_version(
                    record, self._function_id, _new_version(code, settings, author, deployed_at)
                )

            planned = changed(None if stored is None else stored.record)  # reports invalid settings
            is_stored = await self._has_code(clients, stored, code)
            self.output.fields |= {"code": code.as_json()}
            if self._call.dry_run:
                update = records.Update(None if stored is None else stored.record, planned)
                files = await self._file_changes(clients, update.before, code)
                upload_bytes = 0 if is_stored else code.zip_bytes
                lines = deployment_report.of_dry_run(update, files, upload_bytes)
                return self.output.end(
                    lines, **deployment_report.document(update, files=files, uploaded=False)
                )
            is_uploaded = not is_stored and await delivery.upload(clients, self._bucket, code)
            self.output.say(f"{'Uploaded' if is_uploaded else 'Already uploaded:'} {code.key}.")
            self._progress = _Progress.CHANGING
            update = await records.update(store, self._function_id, changed, stored)
            option = stages.settings_option(self._call.env_file)
            lines = deployment_report.of_deployment(update, option)
            return self.output.end(lines, **deployment_report.document(update, uploaded=is_uploaded))

    def _packed(self, opened: ExitStack, changes: Changes, stored: Stored | None) -> Package:
        """Pack the code. If it has entry files of several languages, the language of the function decides.

        Raises:
            InvalidCall: The code cannot be sent.
        """
        assert self._call.code is not None  # noqa: S101 - checked by `_check`
        current = None if stored is None else stored.record.current_version.settings.runtime
        for runtime in (changes.runtime, current):
            try:
                return opened.enter_context(
                    package.packed(
                        self._call.code,
                        runtime,
                        package.limits_of(self._settings),
                        follow_outside_links=self._call.follow_outside_links,
                    )
                )
            except InvalidCall as exc:
                if changes.runtime is not None or current is None:
                    raise
                refused = exc
        raise refused

    async def _has_code(self, clients: aws.AwsClients, stored: Stored | None, code: Package) -> bool:
        """Return whether the code is stored. S3 is asked only about code of an earlier version."""
        if stored is None or not stored.record.has_code(code.key):
            return False
        return await zip_index.is_stored(await clients.s3(), self._bucket, code.key)

    async def _file_changes(
        self, clients: aws.AwsClients, before: FunctionRecord | None, code: Package
    ) -> FileChanges | None:
        """Return the files that differ from the current version; None if its zip cannot be read."""
        new = zip_index.of_zip(code.zip)
        if before is None:
            return zip_index.compared({}, new)
        if before.current_version.key == code.key:
            return zip_index.FileChanges()
        old = await zip_index.of_version(await clients.s3(), self._bucket, before.current_version)
        return None if old is None else zip_index.compared(old, new)

    # --- a rollback

    async def _roll_back(self, clients: aws.AwsClients, store: S3Records, stored: Stored | None) -> Exit:
        """Make an earlier version the current one, if its zip still exists.

        Raises:
            NoFunction: There is no such function.
            InvalidCall: There is no such version, or its zip cannot be read.
        """
        if stored is None:
            raise no_function(self._function_id, self._bucket)
        before = stored.record
        # By number: if another rollback or deployment comes first, this one does not go further back.
        number = rolled_back(before, self._call.version).current
        version = before.version(number)
        if not await zip_index.is_stored(await clients.s3(), self._bucket, version.key):
            problem = f"its code {version.key} is missing in the bucket {self._bucket}, or may not be read"
            raise InvalidCall([f"version {number}: {problem}; deploy its folder again"])

        def changed(record: FunctionRecord | None) -> FunctionRecord:
            if record is None:
                raise no_function(self._function_id, self._bucket)
            return record if record.current == number else rolled_back(record, number)

        update = records.Update(before, changed(before))
        if not self._call.dry_run:
            self._progress = _Progress.CHANGING
            update = await records.update(store, self._function_id, changed, stored)
        lines = deployment_report.of_rollback(update, is_dry_run=self._call.dry_run)
        return self.output.end(lines, **deployment_report.document(update))


def _check(call: Call) -> Changes:
    """Check the arguments that do not depend on the code and the record.

    Raises:
        InvalidCall: An argument is invalid.
    """
    changes = call.choices.parsed()
    if call.rollback and call.choices != Choices():
        raise InvalidCall(["--rollback: restores the settings of the version; name no other settings"])
    if call.rollback and call.code is None and not call.function_id:
        raise InvalidCall(["--rollback: name the function with --function"])
    if not call.rollback and call.version is not None:
        raise InvalidCall([f"{call.version}: only --rollback takes the number of a version"])
    if not call.rollback and call.code is None:
        raise InvalidCall(
            ["name the folder, the source file or the zip to deploy, such as: nanoagent deploy ."]
        )
    if len(call.author) > _AUTHOR_CHARACTERS or not call.author.isprintable():
        raise InvalidCall([f"--author: is not a text of at most {_AUTHOR_CHARACTERS} printable characters"])
    return changes


def _function_id(call: Call) -> str:
    function_id = call.function_id or package.function_id_of(call.code or Path())
    check_function_id(function_id)
    return function_id


def user_and_host() -> str:
    """Return the author of a version that no option names."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user ID has no name, as in some containers
        user = f"uid-{os.getuid()}"
    return one_line(f"{user}@{socket.gethostname()}")[:_AUTHOR_CHARACTERS]


def _new_version(code: Package, settings: FunctionSettings, author: str, deployed_at: datetime) -> NewVersion:
    return NewVersion(
        digest=code.digest,
        key=code.key,
        zip_bytes=code.zip_bytes,
        files=code.files,
        bytes=code.unpacked_bytes,
        deployed_at=deployed_at,
        author=author,
        settings=settings,
    )
