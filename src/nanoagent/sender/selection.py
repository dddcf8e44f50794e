"""Which files of a folder are sent.

A folder holds more than its function needs, and some of it must not leave the machine: version control,
virtual environments, caches, secrets. The tables below leave those out. A file `.nanoagentignore` at the
folder's top, in the syntax of `.gitignore`, leaves out more, or includes files again (`!.env`).

Links that stay inside the folder are sent as links. The worker refuses a link that leads out of the tree, so
the contents of its target are sent instead. Nothing is left out silently: the selection lists each path that
was left out, with the reason.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nanoagent.errors import InvalidCall, one_line
from nanoagent.sender import ignorefile
from nanoagent.sender.ignorefile import IGNORE_FILE

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
# A `.pem` may be a public certificate that a library needs (certifi's): the contents decide.
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----")
_SECRET_CONTENTS: Final = {
    ".pem": _PRIVATE_KEY,
    ".key": _PRIVATE_KEY,
    ".p8": _PRIVATE_KEY,
    ".crt": _PRIVATE_KEY,
    ".json": _PRIVATE_KEY,  # the key file of a Google service account
    ".npmrc": re.compile(rb"_auth|_password"),
}
_SECRET_MAX_BYTES: Final = 64 * 1024
_DEPTH: Final = 64  # the worker's limit (code/archive.py)
_NAME_BYTES: Final = 1024  # likewise
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_SHOWN_PROBLEMS: Final = 5


class Reason(StrEnum):
    """Why a path is left out."""

    NOT_CODE = "not code"
    IGNORED = f"ignored by {IGNORE_FILE}"
    SECRET = "looks like a secret"  # noqa: S105 - a word for people
    SPECIAL = "a socket, pipe or device"
    DANGLING = "a link without a target"
    LOOP = "a link that leads back to itself"
    TARGET = "a link to something that is left out"


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
    """The paths of a folder that are sent, in order, and those that are left out."""

    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]


def select(folder: Path, *, max_entries: int) -> Selection:
    """Choose the files of a folder.

    Args:
        folder: An existing folder.
        max_entries: Files and folders that the worker takes at most (CODE_MAX_ENTRIES).

    Raises:
        InvalidCall: A file cannot be read, a name cannot be sent, the ignore file is wrong, or there are too
            many files. Every problem is named, up to a few.
    """
    root = folder.resolve()
    walk = _Walk(root, _Rules(ignorefile.read(root)), max_entries)
    walk.folder(root, "", (str(root),))
    links = walk.links()
    if walk.problems:
        raise InvalidCall(_shortened(walk.problems))
    entries = sorted([*walk.entries, *links], key=lambda entry: entry.path)
    return Selection(tuple(entries), tuple(sorted(walk.left_out, key=lambda left: left.path)))


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


class _Rules:
    """Decides which paths are left out.

    Args:
        own: The lines of the ignore file, which take precedence over the tables.
    """

    def __init__(self, own: Sequence[str]) -> None:
        self._own = ignorefile.compiled(own)
        self._secrets = ignorefile.spec(_SECRETS)
        self._not_code = ignorefile.spec(_NOT_CODE)

    def reason(self, path: str, source: str, *, is_folder: bool) -> Reason | None:
        """Why the path is left out; None when it is not.

        Args:
            path: Inside the folder.
            source: Its path on this machine.
            is_folder: Whether it is a folder, or a link to one.
        """
        shown = f"{path}/" if is_folder else path
        own = self._own.check_file(shown).include
        if own is not None:
            return Reason.IGNORED if own else None
        if self._secrets.match_file(shown) or (not is_folder and _holds_secret(source)):
            return Reason.SECRET
        if self._not_code.match_file(shown) or (is_folder and _is_virtual_environment(source)):
            return Reason.NOT_CODE
        return None


def _is_virtual_environment(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "pyvenv.cfg"))  # noqa: PTH113, PTH118 - 100,000 times


def _holds_secret(file: str) -> bool:
    """Whether a file of a kind that may hold a key does hold one."""
    name = os.path.basename(file)  # noqa: PTH119 - 100,000 times
    pattern = _SECRET_CONTENTS.get(os.path.splitext(name)[1] or name)  # noqa: PTH122 - likewise
    if pattern is None:
        return False
    try:
        known = os.stat(file)  # noqa: PTH116 - likewise
        if not stat.S_ISREG(known.st_mode) or known.st_size > _SECRET_MAX_BYTES:
            return False
        with open(file, "rb") as opened:  # noqa: PTH123 - likewise
            return pattern.search(opened.read(_SECRET_MAX_BYTES)) is not None
    except OSError:
        return False  # reported when the file is packed


# --- the walk


@dataclass(slots=True)
class _Walk:
    """A walk through a folder that gathers entries, left-out paths and problems.

    Attributes:
        root: The folder, resolved.
        rules: The rules for paths that are left out.
        max_entries: The walk ends when there are more.
    """

    root: Path
    rules: _Rules
    max_entries: int
    entries: list[Entry] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _inner_links: list[tuple[str, Path, str]] = field(default_factory=list)
    _folders: set[str] = field(default_factory=set)

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
        if reason := self.rules.reason(path, str(source), is_folder=is_folder):
            self.left_out.append(LeftOut(f"{path}/" if is_folder else path, reason))
        elif problem := _name_problem(path):
            self.problems.append(problem)
        elif is_link:
            self._link(source, path, opened)
        else:
            self._content(source, path, opened, known.st_mode)

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
        elif str(real) in opened:
            self.left_out.append(LeftOut(f"{path}/", Reason.LOOP))
        else:
            self._content(real, path, opened, mode)

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


def _shown(path: str) -> str:
    return one_line(path) or "."
