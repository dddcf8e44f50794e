"""Which files of a folder are sent.

A folder holds more than its function needs, and some of it must not leave the machine: version control,
virtual environments, caches, secrets. The tables below leave those out. A file `.nanoagentignore` at the
folder's top, in the syntax of `.gitignore`, leaves out more, or includes files again (`!.env`).

Links that stay inside the folder are sent as links. Links that lead out of it are left out: a folder that
comes from someone else could name any file of this machine. If the person asks for them, the contents of
their targets are sent, except secrets; there the rules apply to each part of the real path, and the ignore
file cannot change them. Nothing is left out silently: the selection lists each path that was left out, with
the reason. It has a notice for each link that was followed and each secret that the ignore file includes.
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
# Places of the machine that a link may lead to.
_SECRET_PLACES: Final = (
    *("/proc/*/environ", "/proc/*/task/*/environ", "/run/secrets"),
    *("/etc/shadow*", "/etc/gshadow*", "/etc/ssh/ssh_host_*_key"),
)
# A `.pem` may be a public certificate that a library needs (certifi's): the contents decide.
_HEADER: Final = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY: Final = re.compile(_HEADER)
# Code that reads or writes keys has the header, too: in other files, the first line of a key must follow. It
# is a line of base64 or an RFC 1421 header; in a program's text, perhaps in the next of several strings.
_MARK: Final = b"PRIVATE KEY"  # a search for bytes is several times faster than one for a pattern
_LINE_END: Final = rb"[ \t]*(?:\r?\n|\\r|\\n)[ \t]*"
_KEY_IN_TEXT: Final = re.compile(
    _HEADER
    + rb"(?:(?:%b){1,4}(?:[A-Za-z0-9+/=]+(?:%b|\Z)|[A-Z][A-Za-z-]+: )" % (_LINE_END, _LINE_END)
    + rb"|[\s\"'`+,;()\\brnu]{1,80}[A-Za-z0-9+/]{40})"
)
_KEY_FILES: Final = frozenset({".pem", ".key", ".p8", ".crt"})  # searched whatever their size
_SECRET_CONTENTS: Final = {
    **dict.fromkeys(_KEY_FILES, _PRIVATE_KEY),
    ".npmrc": re.compile(rb"_auth|_password"),
}
_SEARCHED_BYTES: Final = MIB
_HEADER_BYTES: Final = 128  # a header is shorter
_UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Windows PowerShell writes UTF-16
_DEPTH: Final = 64  # the worker's limit (code/archive.py)
_NAME_BYTES: Final = 1024  # likewise
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_SHOWN_PROBLEMS: Final = 5
_SHOWN_SECRETS: Final = 10


class Reason(StrEnum):
    """Why a path is left out."""

    NOT_CODE = "not code"
    IGNORED = f"ignored by {IGNORE_FILE}"
    SECRET = "looks like a secret"  # noqa: S105 - a word for people
    SPECIAL = "a socket, pipe or device"
    DANGLING = "a link without a target"
    LOOP = "a link that leads back to itself"
    TARGET = "a link to something that is left out"
    OUTSIDE = "a link that leads out of the folder"
    SECRET_OUTSIDE = "looks like a secret, outside the folder"  # noqa: S105 - likewise


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A path that is not sent; if it is a folder, with everything below it."""

    path: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or link that is sent.

    Attributes:
        path: The path in the zip, with `/` between parts; a folder's ends with `/`.
        source: The file whose contents it has; None for folders and links.
        link: A link's target, relative to its folder; empty for files and folders.
        is_executable: Whether the owner may execute it.
        size: Bytes, as the file system says.
        mtime_s: When it was last changed, seconds since 1970.
    """

    path: str
    source: Path | None = None
    link: str = ""
    is_executable: bool = False
    size: int = 0
    mtime_s: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The paths of a folder that are sent, in order, and those that are left out.

    Attributes:
        entries: What is sent.
        left_out: What is not sent.
        notices: Sentences about paths that are sent and that a person may not expect.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    notices: tuple[str, ...] = ()


def select(folder: Path, *, max_entries: int, follow_outside_links: bool = False) -> Selection:
    """Choose the files of a folder.

    Args:
        folder: An existing folder.
        max_entries: Files and folders that the worker takes at most (CODE_MAX_ENTRIES).
        follow_outside_links: Whether links that lead out of the folder are replaced by the contents of their
            targets; otherwise they are left out.

    Raises:
        InvalidCall: A file cannot be read, a name cannot be sent, the ignore file is wrong, or there are too
            many files. Every problem is named, up to a few.
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
    """The entry of one file.

    Raises:
        OSError: It cannot be looked at.
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
    """What the rules say of a path.

    Attributes:
        reason: Why it is left out; None if it is sent.
        included_by: The pattern of the ignore file that includes it although it looks like a secret.
    """

    reason: Reason | None
    included_by: str = ""


_SENT: Final = _Verdict(None)


class _Rules:
    """Decides which paths are left out.

    Args:
        own: The lines of the ignore file, which take precedence over the tables.
    """

    def __init__(self, own: Sequence[str]) -> None:
        self._own = ignorefile.compiled(own)
        self._own_lines = [f"{line.strip()} (line {number})" for number, line in enumerate(own, 1) if line]
        self._secrets = ignorefile.spec(_SECRETS)
        self._places = ignorefile.spec((*_SECRETS, *_SECRET_PLACES))
        self._not_code = ignorefile.spec(_NOT_CODE)

    def verdict(self, path: str, source: str, *, is_folder: bool, is_link: bool) -> _Verdict:
        """Whether the path is left out.

        Args:
            path: Inside the folder.
            source: Its path on this machine.
            is_folder: Whether it is a folder, or a link to one.
            is_link: Whether it is a link; the contents of its target are not examined.
        """
        shown = f"{path}/" if is_folder else path
        own = self._own.check_file(shown)
        if own.include:
            return _Verdict(Reason.IGNORED)
        is_content = not is_folder and not is_link
        is_secret = self._secrets.match_file(shown.lower()) or (is_content and _holds_secret(source))
        if own.include is not None:
            return _Verdict(None, self._own_lines[own.index or 0]) if is_secret else _SENT
        if is_secret:
            return _Verdict(Reason.SECRET)
        if self._not_code.match_file(shown) or (is_folder and _is_virtual_environment(source)):
            return _Verdict(Reason.NOT_CODE)
        return _SENT

    def is_secret_place(self, real: str, *, is_folder: bool) -> bool:
        """Whether a path on this machine is named like a secret."""
        return self._places.match_file(f"{real.lstrip('/')}{'/' * is_folder}".lower())

    def leads_to_secret(self, real: Path, *, is_folder: bool) -> bool:
        """Whether the target of a link is a secret, or is in a folder of secrets.

        Each part is examined: a folder's rule also holds for names in it that are allowed elsewhere.
        """
        return (
            self.is_secret_place(str(real), is_folder=is_folder)
            or any(self.is_secret_place(str(parent), is_folder=True) for parent in real.parents[:-1])
            or (not is_folder and _holds_secret(str(real)))
        )


def _is_virtual_environment(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "pyvenv.cfg"))  # noqa: PTH113, PTH118 - 100,000 times


def _holds_secret(file: str) -> bool:
    """Whether a file holds a private key, or a token of npm."""
    name = os.path.basename(file).lower()  # noqa: PTH119 - 100,000 times
    kind = os.path.splitext(name)[1] or name  # noqa: PTH122 - likewise
    pattern = _SECRET_CONTENTS.get(kind, _KEY_IN_TEXT)
    try:
        known = os.stat(file)  # noqa: PTH116 - likewise
        if not stat.S_ISREG(known.st_mode) or (kind not in _KEY_FILES and known.st_size > _SEARCHED_BYTES):
            return False
        with open(file, "rb") as opened:  # noqa: PTH123 - likewise
            return _is_found(pattern, opened)
    except OSError:
        return False  # reported when the file is packed


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
    """A walk through a folder that gathers entries, left-out paths and problems.

    Attributes:
        root: The folder, resolved.
        rules: The rules for paths that are left out.
        max_entries: The walk ends when there are more.
        follow_outside_links: Whether to walk into the targets of links that lead out of the root.
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
            folder: Its path on this machine.
            prefix: Its path in the zip with a `/` behind it; empty for the root.
            opened: The real paths of the folders that the walk is in, this one included.
        """
        if len(opened) > _DEPTH:
            self.problems.append(f"{_shown(prefix)}: is more than {_DEPTH} folders deep")
            return
        self._folders.add(prefix.removesuffix("/"))
        try:
            children = sorted(os.listdir(folder))  # noqa: PTH208 - names alone
        except OSError as exc:
            self._unreadable(prefix, exc)
            return
        for name in children:
            self._child(folder / name, prefix + name, opened)
        if prefix and not children:
            self._add(Entry(path=prefix, mtime_s=int(folder.stat().st_mtime)))

    def links(self) -> list[Entry]:
        """The links that stay inside the folder; called after the walk, when all entries are known."""
        there = self._folders | {entry.path for entry in self.entries}
        kept = [link for link in self._inner_links if link[2] in there]
        self.left_out += [
            LeftOut(link[0], Reason.TARGET) for link in self._inner_links if link[2] not in there
        ]
        there |= {path for path, _, _ in kept}
        return [self._link_entry(path, source, target, there) for path, source, target in kept]

    def notices(self) -> list[str]:
        """Sentences about links that were followed and secrets that are sent; called after the walk."""
        notices = [
            f"{IGNORE_FILE} includes what looks like a secret: {one_line(pattern)}: {_some(paths)}."
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
        """Whether a path below the target of a link is a secret, whatever the ignore file says."""
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
        except (OSError, RuntimeError) as exc:  # before Python 3.13 a loop is a RuntimeError
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

    def _link_entry(self, path: str, source: Path, target: str, there: set[str]) -> Entry:
        """A link as it is, if the worker can follow it; otherwise a link to its final target."""
        folder = posixpath.dirname(path)
        known, link = source.lstat(), os.readlink(source)  # noqa: PTH115 - text, not a path
        followed = posixpath.normpath(posixpath.join(folder, link))
        if posixpath.isabs(link) or ("" if followed == "." else followed) not in there:
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
    """Why the worker would refuse a path; None if it would not."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return f"{_shown(path)}: its name is not UTF-8; rename it, or leave it out with {IGNORE_FILE}"
    if _CONTROL.search(path.rpartition("/")[2]):
        return f"{_shown(path)}: its name has a backslash or a control character; rename it"
    if size > _NAME_BYTES:
        return f"{_shown(path)}: its path has {size} bytes; the worker takes {_NAME_BYTES}"
    return None


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN_SECRETS} more" if len(paths) > _SHOWN_SECRETS else ""
    return one_line(", ".join(paths[:_SHOWN_SECRETS])) + more


def _shown(path: str) -> str:
    return one_line(path) or "."
