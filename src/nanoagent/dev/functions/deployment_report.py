"""The output of `nanoagent deploy`: lines for a person, and the fields of the JSON document."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from nanoagent.dev.functions import choices
from nanoagent.dev.functions.choices import Difference
from nanoagent.dev.sender.package import shown_size
from nanoagent.model.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.dev.functions.records import Update
    from nanoagent.dev.functions.zip_index import FileChanges

_SHOWN_FILES: Final = 20
_DIGEST_CHARACTERS: Final = 12


def of_deployment(update: Update, settings_option: str) -> list[str]:
    """Return the lines about a deployment.

    Args:
        update: The update of the record.
        settings_option: The option by which a proposed command finds the same bucket.
    """
    if update.after is update.before:
        return [_unchanged(update)]
    function_id, number = update.after.function_id, update.after.current
    return [
        f"Deployed {one_line(function_id)}, version {number}{_instead_of(update)}.",
        *_lines(differences(update)),
        f"To run it:  nanoagent invoke {shlex.quote(function_id)}{settings_option}",
    ]


def of_dry_run(update: Update, files: FileChanges | None, upload_bytes: int) -> list[str]:
    """Return the lines about a deployment that was only tried.

    Args:
        update: The update that a deployment would make.
        files: The files that differ; None if they cannot be compared.
        upload_bytes: The size of the upload; 0 if the code is stored already.
    """
    function_id, number = update.after.function_id, update.after.current
    first = f"Would deploy {one_line(function_id)}, version {number}{_instead_of(update)}."
    upload = shown_size(upload_bytes) if upload_bytes else "no code: it is stored already"
    return [
        _unchanged(update) if update.after is update.before else first,
        *_lines(differences(update)),
        *_file_lines(files),
        f"Would upload {upload}. Nothing was changed.",
    ]


def of_rollback(update: Update, *, is_dry_run: bool) -> list[str]:
    """Return the lines about a rollback."""
    name, number = one_line(update.after.function_id), update.after.current
    if update.after is update.before:
        return [f"{name}: version {number} is already the current one."]
    done = f"back to version {number}{_instead_of(update)}."
    first = f"Would roll {name} {done} Nothing was changed." if is_dry_run else f"Rolled {name} {done}"
    return [first, *_lines(differences(update))]


def document(update: Update, *, files: FileChanges | None = None, uploaded: bool = False) -> dict[str, Any]:
    """Return the fields of the JSON document about an update."""
    version = update.after.current_version
    return {
        "changed": update.after is not update.before,
        "version": version.number,
        "versionBefore": None if update.before is None else update.before.current,
        "digest": version.digest,
        "s3Key": version.key,
        "settings": [difference._asdict() for difference in differences(update)],
        "files": None if files is None else files._asdict(),
        "uploaded": uploaded,
    }


def differences(update: Update) -> list[Difference]:
    """Return the differences between the versions that are current before and after an update."""
    after = update.after.current_version
    before = None if update.before is None else update.before.current_version
    found = choices.differences(None if before is None else before.settings, after.settings)
    if before is not None and before.digest != after.digest:
        digests = before.digest[:_DIGEST_CHARACTERS], after.digest[:_DIGEST_CHARACTERS]
        found.insert(0, Difference("code", *digests))
    return found


def _lines(found: Sequence[Difference]) -> list[str]:
    """Return one aligned line for each difference."""
    width = max((len(one_line(difference.setting)) for difference in found), default=0)
    return [f"  {one_line(difference.setting):{width}}  {_change(difference)}" for difference in found]


def _change(difference: Difference) -> str:
    if difference.before is None or difference.after is None:
        return one_line(difference.after or "removed")
    if difference.before == difference.after:  # the values of variables are not shown
        return "changed"
    return one_line(f"{difference.before} → {difference.after}")


def _instead_of(update: Update) -> str:
    return "" if update.before is None else f", which replaces version {update.before.current}"


def _unchanged(update: Update) -> str:
    name = one_line(update.after.function_id)
    return f"{name} is unchanged: version {update.after.current} has this code and these settings."


def _file_lines(files: FileChanges | None) -> list[str]:
    if files is None:
        return ["  The files cannot be compared: the code of the current version cannot be read."]
    kinds = {"+": files.added, "~": files.changed, "-": files.removed}
    lines = [f"  {mark} {one_line(path)}" for mark, paths in kinds.items() for path in paths]
    if len(lines) <= _SHOWN_FILES:
        return lines
    counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in files._asdict().items())
    return [*lines[:_SHOWN_FILES], f"  … in all: {counts}"]
