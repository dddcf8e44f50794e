"""Selects the files of a folder that are sent.

A folder may contain files that the function does not need, and files that must not leave the machine: version
control, virtual environments, caches, secrets. The tables below leave them out. A file `.nanoagentignore` at
the top of the folder, in the syntax of `.gitignore`, leaves out more files, or includes files again
(`!.env`).

Links to targets in the folder are sent as links. Links to targets outside the folder are left out: a folder
from another person could have links to any file of this machine. With `--follow-outside-links`, such links
are replaced with the contents of their targets, except secrets. For these targets, the rules for secrets
apply to each part of the real path, and the ignore file cannot include a secret again.

The selection lists each path that was left out, with the reason. Its notices name the links that were
followed, and the secrets that the ignore file includes.
"""

from __future__ import annotations

import codecs
import errno
import os
import posixpath
import re
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, BinaryIO, Final

from nanoagent.common.units import MIB
from nanoagent.dev.sender import ignorefile
from nanoagent.dev.sender.ignorefile import IGNORE_FILE
from nanoagent.model.errors import InvalidCall, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NOT_CODE: Final = (
    *(".git", ".hg", ".svn", ".bzr", ".jj"),
    *(".venv", "__pycache__", ".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
    *(".ipynb_checkpoints", ".coverage", "**/node_modules/.cache"),
    *(".idea", ".vscode", ".vs", "*.swp", "*~", ".#*"),
    *(".DS_Store", "._*", "__MACOSX", "Thumbs.db", "desktop.ini"),
    *(".terraform", ".serverless", ".aws-sam", "cdk.out"),
    *("/.nanoagent", f"/{IGNORE_FILE}"),
)
_SECRETS: Final = (
    *(".env", ".env.*", ".envrc", "!.env.example", "!.env.sample", "!.env.template", "!.env.dist"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk"),
    *("*.p12", "*.pfx", "*.ppk", "*.kdbx", "*.tfstate", "*.tfstate.*"),
    *(".netrc", "_netrc", ".pypirc", ".git-credentials", ".pgpass"),
    *(".aws", ".ssh", ".gnupg", ".kube", "**/.docker/config.json", "**/.config/gcloud"),
)
# Secrets of the machine, as targets of links.
_SECRET_PLACES: Final = (
    *("/proc/*/environ", "/proc/*/task/*/environ", "/run/secrets"),
    *("/etc/shadow*", "/etc/gshadow*", "/etc/ssh/ssh_host_*_key"),
)
# A `.pem` file may be a public certificate that a library such as certifi needs. So the contents are
# searched.
_HEADER: Final = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY: Final = re.compile(_HEADER)
# Programs that read or write keys contain this header, too. So in a file that is not a key file, the first
# line of a key must follow the header: base64, or a header of RFC 1421. In source code, this line may be in
# the next string literal.
_MARK: Final = b"PRIVATE KEY"  # a search for bytes is several times faster than for a pattern
_LINE_END: Final = rb"[ \t]*(?:\r?\n|\\r|\\n)[ \t]*"
_KEY_IN_TEXT: Final = re.compile(
    _HEADER
    + rb"(?:(?:%b){1,4}(?:[A-Za-z0-9+/=]+(?:%b|\Z)|[A-Z][A-Za-z-]+: )" % (_LINE_END, _LINE_END)
    + rb"|[\s\"'`+,;()\\brnu]{1,80}[A-Za-z0-9+/]{40})"
)
_KEY_FILES: Final = frozenset({".pem", ".key", ".p8", ".crt"})  # searched at any size
_SECRET_CONTENTS: Final = {
    **dict.fromkeys(_KEY_FILES, _PRIVATE_KEY),
    ".npmrc": re.compile(rb"_auth|_password"),
}
_SEARCHED_BYTES: Final = MIB
_HEADER_BYTES: Final = 128  # more than the length of a header
_UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Windows PowerShell writes UTF-16
_DEPTH: Final = 64  # a limit of the worker (code/zip_entries.py)
_NAME_BYTES: Final = 1024  # also a limit of the worker
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_SHOWN_PROBLEMS: Final = 5
_SHOWN_SECRETS: Final = 10


class Reason(StrEnum):
    """The reason why a path is left out."""

    NOT_CODE = "not code"
    IGNORED = f"ignored by {IGNORE_FILE}"
    SECRET = "looks like a secret"  # noqa: S105 - a text, not a password
    SPECIAL = "a socket, pipe or device"
    DANGLING = "a link without a target"
    LOOP = "a link that leads back to itself"
    TARGET = "a link to something that is left out"
    OUTSIDE = "a link that leads out of the folder"
    SECRET_OUTSIDE = "looks like a secret, outside the folder"  # noqa: S105 - a text, not a password


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A path that is not sent. A folder stands for all paths in it."""

    path: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or link that is sent.

    Attributes:
        path: The path in the zip, with `/` between parts. The path of a folder ends with `/`.
        source: The file with the contents; None for folders and links.
        link: The target of a link, relative to the folder of the link; empty for files and folders.
        is_executable: Whether the owner may execute the file.
        size: The size in the file system, bytes.
        mtime_s: The time of the last change, seconds since 1970.
    """

    path: str
    source: Path | None = None
    link: str = ""
    is_executable: bool = False
    size: int = 0
    mtime_s: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The paths of a folder that are sent, sorted, and the paths that are left out.

    Attributes:
        entries: The paths that are sent.
        left_out: The paths that are not sent.
        notices: Sentences about sent paths that the sender may not expect.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    notices: tuple[str, ...] = ()


def select(folder: Path, *, max_entries: int, follow_outside_links: bool = False) -> Selection:
    """Select the files of a folder.

    Args:
        folder: An existing folder.
        max_entries: The largest number of files and folders (CODE_MAX_ENTRIES).
        follow_outside_links: Whether links to targets outside the folder are replaced with the contents of
            their targets. Otherwise they are left out.

    Raises:
        InvalidCall: A file cannot be read, a name cannot be sent, the ignore file is wrong, or the folder has
            too many files. The error names the first few problems.
    """
    root = folder.resolve()
    walk = _Walk(root, _Rules(ignorefile.read(root)), max_entries, follow_outside_links)
    walk.folder(root, "", (str(root),))
    links = walk.links()
    if walk.problems:
        raise InvalidCall(_shortened(walk.problems))
    entries = sorted([*walk.entries, *links], key=lambda entry: entry.path)
    left_out = tuple(sorted(walk.left_out, key=lambda left: left.path))
    return Selection(tuple(entries), left_out, tuple(walk.notices()))


def file_entry(file: Path, path: str) -> Entry:
    """Return the entry of one file.

    Raises:
        OSError: The file does not exist, or its attributes cannot be read.
    """
    known = file.stat()
    return Entry(
        path=path,
        source=file,
        is_executable=bool(known.st_mode & stat.S_IXUSR),
        size=known.st_size,
        mtime_s=int(known.st_mtime),
    )


def _shortened(problems: Sequence[str]) -> list[str]:
    shown = list(problems[:_SHOWN_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more")
    return shown


# --- rules


@dataclass(frozen=True, slots=True)
class _Verdict:
    """The decision of the rules on a path.

    Attributes:
        reason: The reason why the path is left out; None if it is sent.
        included_by: The pattern of the ignore file that includes the path although it looks like a secret.
    """

    reason: Reason | None
    included_by: str = ""


_SENT: Final = _Verdict(None)


class _Rules:
    """Decides which paths are left out.

    Args:
        own: The lines of the ignore file. They have priority over the tables.
    """

    def __init__(self, own: Sequence[str]) -> None:
        self._own = ignorefile.compiled(own)
        self._own_lines = [f"{line.strip()} (line {number})" for number, line in enumerate(own, 1) if line]
        self._secrets = ignorefile.spec(_SECRETS)
        self._places = ignorefile.spec((*_SECRETS, *_SECRET_PLACES))
        self._not_code = ignorefile.spec(_NOT_CODE)

    def verdict(self, path: str, source: str, *, is_folder: bool, is_link: bool) -> _Verdict:
        """Decide whether a path is left out.

        Args:
            path: The path relative to the folder.
            source: The path on this machine.
            is_folder: Whether the path is a folder, or a link to a folder.
            is_link: Whether the path is a link. The contents of its target are not examined.
        """
        shown = f"{path}/" if is_folder else path
        own = self._own.check_file(shown)
        if own.include:
            return _Verdict(Reason.IGNORED)
        is_content = not is_folder and not is_link
        is_secret = self._secrets.match_file(shown.lower()) or (is_content and _contains_secret(source))
        if own.include is not None:
            return _Verdict(None, self._own_lines[own.index or 0]) if is_secret else _SENT
        if is_secret:
            return _Verdict(Reason.SECRET)
        if self._not_code.match_file(shown) or (is_folder and _is_virtual_environment(source)):
            return _Verdict(Reason.NOT_CODE)
        return _SENT

    def is_secret_place(self, real: str, *, is_folder: bool) -> bool:
        """Return whether a path on this machine has the name of a secret."""
        return self._places.match_file(f"{real.lstrip('/')}{'/' * is_folder}".lower())

    def leads_to_secret(self, real: Path, *, is_folder: bool) -> bool:
        """Return whether the target of a link is a secret, or is in a folder of secrets.

        Each parent folder is examined: in a folder of secrets, all names are secrets.
        """
        return (
            self.is_secret_place(str(real), is_folder=is_folder)
            or any(self.is_secret_place(str(parent), is_folder=True) for parent in real.parents[:-1])
            or (not is_folder and _contains_secret(str(real)))
        )


def _is_virtual_environment(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "pyvenv.cfg"))  # noqa: PTH113, PTH118 - speed: up to 100,000 calls


def _contains_secret(file: str) -> bool:
    """Return whether a file contains a private key, or a token of npm."""
    name = os.path.basename(file).lower()  # noqa: PTH119 - speed: up to 100,000 calls
    kind = os.path.splitext(name)[1] or name  # noqa: PTH122 - speed
    pattern = _SECRET_CONTENTS.get(kind, _KEY_IN_TEXT)
    try:
        known = os.stat(file)  # noqa: PTH116 - speed
        if not stat.S_ISREG(known.st_mode) or (kind not in _KEY_FILES and known.st_size > _SEARCHED_BYTES):
            return False
        with open(file, "rb") as opened:  # noqa: PTH123 - speed
            return _is_found(pattern, opened)
    except OSError:
        return False  # the error is reported when the file is packed


def _is_found(pattern: re.Pattern[bytes], opened: BinaryIO) -> bool:
    end, is_utf16 = b"", False
    while chunk := opened.read(_SEARCHED_BYTES):
        is_utf16 = is_utf16 or (not end and chunk.startswith(_UTF16_MARKS))
        text = end + (chunk.replace(b"\0", b"") if is_utf16 else chunk)
        if (pattern is not _KEY_IN_TEXT or _MARK in text) and pattern.search(text):
            return True
        end = text[-_HEADER_BYTES:]
    return False


# --- the walk


@dataclass(slots=True)
class _Walk:
    """A walk through a folder. It collects entries, paths that are left out, and problems.

    Attributes:
        root: The folder, resolved.
        rules: Decides which paths are left out.
        max_entries: The largest number of entries; the walk ends with an error if the folder has more.
        follow_outside_links: Whether to follow links whose targets are outside the root.
    """

    root: Path
    rules: _Rules
    max_entries: int
    follow_outside_links: bool
    entries: list[Entry] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _inner_links: list[tuple[str, Path, str]] = field(default_factory=list)
    _folders: set[str] = field(default_factory=set)
    _followed: list[tuple[str, Path]] = field(default_factory=list)
    _included: dict[str, list[str]] = field(default_factory=dict)

    def folder(self, folder: Path, prefix: str, opened: tuple[str, ...]) -> None:
        """Walk through a folder.

        Args:
            folder: The path of the folder on this machine.
            prefix: The path of the folder in the zip, with a `/` at its end; empty for the root.
            opened: The real paths of this folder and its parents in the walk.
        """
        if len(opened) > _DEPTH:
            self.problems.append(f"{_shown(prefix)}: is more than {_DEPTH} folders deep")
            return
        self._folders.add(prefix.removesuffix("/"))
        try:
            children = sorted(os.listdir(folder))  # noqa: PTH208 - only the names
        except OSError as exc:
            self._unreadable(prefix, exc)
            return
        for name in children:
            self._child(folder / name, prefix + name, opened)
        if prefix and not children:
            self._add(Entry(path=prefix, mtime_s=int(folder.stat().st_mtime)))

    def links(self) -> list[Entry]:
        """Return the links whose targets are sent. Leave out the other links to targets in the folder.

        Call this after the walk, when all entries are known.
        """
        sent = self._folders | {entry.path for entry in self.entries}
        kept = [link for link in self._inner_links if link[2] in sent]
        self.left_out += [
            LeftOut(link[0], Reason.TARGET) for link in self._inner_links if link[2] not in sent
        ]
        sent |= {path for path, _, _ in kept}
        return [self._link_entry(path, source, target, sent) for path, source, target in kept]

    def notices(self) -> list[str]:
        """Return sentences about followed links and sent secrets. Call it after the walk."""
        notices = [
            f"{IGNORE_FILE} includes a file that looks like a secret: {one_line(pattern)}: {_some(paths)}."
            for pattern, paths in self._included.items()
        ]
        if self._followed:
            links = ", ".join(one_line(f"{path} -> {target}") for path, target in self._followed)
            notices.append(f"Followed {len(self._followed)} links out of the folder: {links}.")
        return notices

    def _child(self, source: Path, path: str, opened: tuple[str, ...]) -> None:
        try:
            known = source.lstat()
            is_link = stat.S_ISLNK(known.st_mode)
            is_folder = source.is_dir() if is_link else stat.S_ISDIR(known.st_mode)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                self._unreadable(path, exc)
                return
            is_folder = False
        verdict = self.rules.verdict(path, str(source), is_folder=is_folder, is_link=is_link)
        reason = verdict.reason
        if reason is not Reason.IGNORED and self._is_secret_outside(source, verdict, is_folder=is_folder):
            reason = Reason.SECRET_OUTSIDE
        if verdict.included_by and reason is None:
            self._included.setdefault(verdict.included_by, []).append(path)
        if reason is not None:
            self.left_out.append(LeftOut(f"{path}/" if is_folder else path, reason))
        elif problem := _name_problem(path):
            self.problems.append(problem)
        elif is_link:
            self._link(source, path, opened)
        else:
            self._content(source, path, opened, known.st_mode)

    def _is_secret_outside(self, source: Path, verdict: _Verdict, *, is_folder: bool) -> bool:
        """Return whether a path below the target of a link is a secret. The ignore file does not matter."""
        if source.is_relative_to(self.root):
            return False
        is_secret = verdict.reason is Reason.SECRET or bool(verdict.included_by)
        return is_secret or self.rules.is_secret_place(str(source), is_folder=is_folder)

    def _content(self, source: Path, path: str, opened: tuple[str, ...], mode: int) -> None:
        if stat.S_ISDIR(mode):
            self.folder(source, f"{path}/", (*opened, str(source)))
        elif not stat.S_ISREG(mode):
            self.left_out.append(LeftOut(path, Reason.SPECIAL))
        elif os.access(source, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            self._add(file_entry(source, path))
        else:
            self.problems.append(f"{_shown(path)}: cannot be read: Permission denied; {_REMEDY}")

    def _link(self, source: Path, path: str, opened: tuple[str, ...]) -> None:
        try:
            real = source.resolve(strict=True)
            mode = real.stat().st_mode
        except (OSError, RuntimeError) as exc:  # before Python 3.13 a loop raises RuntimeError
            is_loop = isinstance(exc, RuntimeError) or exc.errno == errno.ELOOP
            self.left_out.append(LeftOut(path, Reason.LOOP if is_loop else Reason.DANGLING))
            return
        if real.is_relative_to(self.root):
            target = real.relative_to(self.root).as_posix()
            self._inner_links.append((path, source, "" if target == "." else target))
            return
        is_folder = stat.S_ISDIR(mode)
        if not self.follow_outside_links:
            reason = Reason.OUTSIDE
        elif self.rules.leads_to_secret(real, is_folder=is_folder):
            reason = Reason.SECRET_OUTSIDE
        elif str(real) in opened:
            reason = Reason.LOOP
        else:
            self._followed.append((path, real))
            self._content(real, path, opened, mode)
            return
        self.left_out.append(LeftOut(f"{path}/" if is_folder else path, reason))

    def _link_entry(self, path: str, source: Path, target: str, sent: set[str]) -> Entry:
        """Return the unchanged link if the worker can follow it, else a link to its final target."""
        folder = posixpath.dirname(path)
        known, link = source.lstat(), os.readlink(source)  # noqa: PTH115 - text, not a path
        followed = posixpath.normpath(posixpath.join(folder, link))
        if posixpath.isabs(link) or ("" if followed == "." else followed) not in sent:
            link = posixpath.relpath(target or ".", folder or ".")
        return Entry(path=path, link=link, mtime_s=int(known.st_mtime))

    def _add(self, entry: Entry) -> None:
        self.entries.append(entry)
        count = len(self.entries) + len(self._inner_links) + len(self._folders)
        if count > self.max_entries:
            problem = f"{self.root}: has more than {self.max_entries} files and folders (CODE_MAX_ENTRIES)"
            raise InvalidCall([f"{problem}; leave some out with {IGNORE_FILE}"])

    def _unreadable(self, path: str, exc: OSError) -> None:
        self.problems.append(f"{_shown(path)}: cannot be read: {exc.strerror}; {_REMEDY}")


_REMEDY: Final = f"change its mode, or leave it out with {IGNORE_FILE}"


def _name_problem(path: str) -> str | None:
    """Return why the worker would refuse a path; None if it would accept it."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return f"{_shown(path)}: its name is not UTF-8; rename it, or leave it out with {IGNORE_FILE}"
    if _CONTROL.search(path.rpartition("/")[2]):
        return f"{_shown(path)}: its name has a backslash or a control character; rename it"
    if size > _NAME_BYTES:
        return f"{_shown(path)}: its path has {size} bytes; the worker accepts {_NAME_BYTES}"
    return None


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN_SECRETS} more" if len(paths) > _SHOWN_SECRETS else ""
    return one_line(", ".join(paths[:_SHOWN_SECRETS])) + more


def _shown(path: str) -> str:
    return one_line(path) or "."
