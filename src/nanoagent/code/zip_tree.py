"""Builds the tree of a zip in memory, before files are written, and checks its symbolic links.

This module does not touch the disk. Names that differ only in case or in Unicode form are different names, as
in Linux.

The base is the folder that runs see: the root of the tree, or its single top folder. A symbolic link is
accepted if it leads to a file or folder inside the base. Links are followed as the kernel follows them
(path_resolution(7)): `..` after a link to a folder is the parent of that folder, and one name leads through
40 links at most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.code import refusals
from nanoagent.code.entry_file import MOST_LISTED, MOST_LOOKED_INTO, TopFolder, is_leftover
from nanoagent.code.refusals import refused
from nanoagent.code.zip_entries import MAX_DEPTH, Kind
from nanoagent.languages.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.code.zip_entries import Entry, TreePath
    from nanoagent.model.errors import Rejected
    from nanoagent.model.job import Runtime

_MOST_LINKS: Final = 40  # MAXSYMLINKS, include/linux/namei.h
# The longest useful target leads MAX_DEPTH folders up, then MAX_DEPTH folders down. This limits the work for
# one link.
_MOST_STEPS: Final = 2 * MAX_DEPTH


@dataclass(slots=True, eq=False)
class Node:
    """A file, folder or link of the tree.

    Attributes:
        kind: The kind.
        name: The name in the folder, UTF-8.
        parent: The folder that has it; None for the root.
        entry: The entry of the archive; None for a folder that only occurs in the paths of entries.
        children: The nodes in a folder, by name.
        leads_to: The file or folder to which a link leads; None until the link has been followed.
        link_count: The number of links on the way to `leads_to`, this one included.
        following_started: Whether following the link has begun. If it begins again, there is a loop.
        packed_at: The offset of a file's data in the pack (`unpacking`).
        number: The number of the node's record in the pack (`unpacking`).
    """

    kind: Kind
    name: bytes = b""
    parent: Node | None = None
    entry: Entry | None = None
    children: dict[bytes, Node] = field(default_factory=dict)
    leads_to: Node | None = None
    link_count: int = 0
    following_started: bool = False
    packed_at: int = 0
    number: int = 0


class Tree:
    """The files, folders and links of a zip.

    Args:
        max_nodes: The limit of their number, without the root.

    Attributes:
        root: The tree's own folder.
        nodes: All nodes except the root.
        links: All symbolic links.
    """

    def __init__(self, max_nodes: int) -> None:
        self.root = Node(Kind.FOLDER)
        self.nodes: list[Node] = []
        self.links: list[Node] = []
        self._max_nodes = max_nodes
        self._last: tuple[tuple[bytes, ...], Node] = ((), self.root)

    def add(self, entry: Entry, path: TreePath) -> None:
        """Add an entry and the folders above it. Of two equal entries with one path, the later one is used.

        Raises:
            Rejected: A different entry has the path, or the path leads through a file or link, or there are
                too many nodes.
        """
        folder = self._folder(path.folder, entry)
        node = folder.children.get(path.name)
        if node is None:
            self._put(Node(entry.kind, path.name, folder, entry), folder)
            return
        if node.kind is not entry.kind and Kind.FOLDER in {node.kind, entry.kind}:
            raise _file_and_folder(entry, (*path.folder, path.name))
        if node.entry is not None and not _are_equal(node.entry, entry):
            raise refused(refusals.TWICE, name=entry.name)
        node.entry = entry

    def _folder(self, parts: tuple[bytes, ...], entry: Entry) -> Node:
        # The last folder is cached: thousands of files in a deep folder do not need a lookup per level.
        if parts == self._last[0]:
            return self._last[1]
        folder = self.root
        for depth, part in enumerate(parts, 1):
            node = folder.children.get(part)
            if node is None:
                node = Node(Kind.FOLDER, part, folder)
                self._put(node, folder)
            elif node.kind is not Kind.FOLDER:
                raise _file_and_folder(entry, parts[:depth])
            folder = node
        self._last = parts, folder
        return folder

    def _put(self, node: Node, folder: Node) -> None:
        if len(self.nodes) >= self._max_nodes:
            raise refused(refusals.TOO_MANY_ENTRIES, limit=self._max_nodes)
        self.nodes.append(node)
        folder.children[node.name] = node
        if node.kind is Kind.LINK:
            self.links.append(node)

    def walk(self) -> Iterator[tuple[Node, int]]:
        """Yield each node and its depth, from 1. A folder comes before its entries, which follow directly."""
        pending = [iter(self.root.children.values())]
        while pending:
            for node in pending[-1]:
                yield node, len(pending)
                if node.kind is Kind.FOLDER:
                    pending.append(iter(node.children.values()))
                    break
            else:
                pending.pop()

    @property
    def base(self) -> Node:
        """The folder that runs see: the single top folder if there is one, or else the root."""
        return self._single_folder()[1]

    def has_entry(self, entry: str) -> bool:
        """Whether `entry_file.find_root` would find the entry file. All links must have been checked."""
        return _has_file(self.root, entry) or _has_file(self.base, entry)

    def top_folder(self, runtime: Runtime) -> TopFolder:
        """Return the names in the base, for the refusal of a zip without an entry file.

        `entry_file.missing_entry` reads the same names from an unpacked tree on the disk.
        """
        folder, node = self._single_folder()
        children = {name.decode(): child for name, child in node.children.items()}
        names = sorted(name for name in children if not is_leftover(name))[:MOST_LISTED]
        entry = RECIPES[runtime].entry
        with_entry = tuple(name for name in names[:MOST_LOOKED_INTO] if _has_file(children[name], entry))
        return TopFolder(runtime, tuple(names), with_entry, folder)

    def _single_folder(self) -> tuple[str, Node]:
        """Return the single top folder with its name; without one, the root with an empty name."""
        top = [node for name, node in self.root.children.items() if not is_leftover(name.decode())]
        if len(top) == 1 and top[0].kind is Kind.FOLDER:
            return top[0].name.decode(), top[0]
        return "", self.root


class Links:
    """Follows links as the kernel does, and refuses links that leave the base.

    Args:
        base: The folder that runs see.
        target_of: Reads the target of a link. Targets are not cached, because 100,000 would take much memory.
    """

    def __init__(self, base: Node, target_of: Callable[[Entry], str]) -> None:
        self._base = base
        self._target_of = target_of
        self._depth = 0  # the number of links that are being followed, one inside another

    def check(self, link: Node) -> None:
        """Check that a link leads to a file or folder inside the base.

        Raises:
            Rejected: The link leads elsewhere.
        """
        if self._base not in _ancestry_of(link):
            raise self._refused(refusals.LINK_OUTSIDE, link)
        self._follow(link)

    def _follow(self, link: Node) -> Node:
        """Return the file or folder to which the link leads, after all links on the way."""
        if link.leads_to is not None:
            return link.leads_to
        if link.following_started:
            raise self._refused(refusals.LINK_LOOP, link)
        link.following_started = True
        link.link_count = 1
        self._depth += 1
        at = link.parent or self._base
        for part in self._parts_of(link):
            at = self._step(link, at, part)
            if link.link_count > _MOST_LINKS:
                raise self._refused(refusals.LINK_LOOP, link)
        self._depth -= 1
        link.leads_to = at
        return at

    def _step(self, link: Node, at: Node, part: bytes) -> Node:
        """Follow one part of a link's target. If the part is a link, all links behind it also count."""
        if at.kind is not Kind.FOLDER:
            raise self._refused(refusals.LINK_DANGLING, link)
        if part in {b"", b"."}:
            return at
        if part == b"..":
            if at is self._base or at.parent is None:
                raise self._refused(refusals.LINK_OUTSIDE, link)
            return at.parent
        found = at.children.get(part)
        if found is None:
            raise self._refused(refusals.LINK_DANGLING, link)
        if found.kind is Kind.LINK:
            if self._depth >= _MOST_LINKS:  # refuse a long chain of links before the recursion is deep
                raise self._refused(refusals.LINK_LOOP, link)
            reached = self._follow(found)
            link.link_count += found.link_count
            return reached
        return found

    def _parts_of(self, link: Node) -> list[bytes]:
        """Return the parts of a link's target."""
        target = self._target(link)
        if target.startswith("/"):
            raise self._refused(refusals.LINK_ABSOLUTE, link)
        if not target or "\0" in target or target.count("/") >= _MOST_STEPS:
            raise self._refused(refusals.LINK_TEXT, link)
        return target.encode().split(b"/")

    def _target(self, link: Node) -> str:
        return self._target_of(link.entry) if link.entry is not None else ""

    def _refused(self, rule: refusals.Rule, link: Node) -> Rejected:
        name = link.entry.name if link.entry is not None else ""
        return refused(rule, name=name, target=self._target(link), limit=_MOST_LINKS)


def _has_file(folder: Node, name: str) -> bool:
    """Whether a folder has a file of that name. Links to folders and files count."""
    found = (folder.leads_to or folder).children.get(name.encode())
    return found is not None and (found.leads_to or found).kind is Kind.FILE


def _file_and_folder(entry: Entry, parts: tuple[bytes, ...]) -> Rejected:
    return refused(refusals.FILE_AND_FOLDER, name=entry.name, other=b"/".join(parts).decode())


def _are_equal(one: Entry, other: Entry) -> bool:
    """Whether two entries with one path have the same content, according to the zip's central directory."""
    return (one.kind, one.bytes, one.crc) == (other.kind, other.bytes, other.crc)


def _ancestry_of(node: Node) -> Iterator[Node]:
    """The node and the folders above it."""
    at: Node | None = node
    while at is not None:
        yield at
        at = at.parent
