"""The tree that a zip describes, built in memory before anything is written.

Nothing here touches the disk. Names that differ only in case or in Unicode form are different
names, as they are to Linux.

A symbolic link is kept if its target, after all links on the way are followed, is a file or folder of the
zip inside the code's own folder: the tree, or its single top folder, which is then what runs see. It is
followed as the kernel does (path_resolution(7)): `..` of a folder that a link led to is that folder's own
parent, and at most 40 links are followed for one name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nanoagent.code import refusals
from nanoagent.code.entry_file import MOST_LISTED, MOST_LOOKED_INTO, Top, is_leftover
from nanoagent.code.refusals import refused
from nanoagent.code.zip_entries import MAX_DEPTH, Kind
from nanoagent.languages.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nanoagent.code.zip_entries import Entry, Place
    from nanoagent.model.errors import Rejected
    from nanoagent.model.job import Runtime

_MOST_LINKS: Final = 40  # MAXSYMLINKS, include/linux/namei.h
# Up from the deepest folder and down to another; with this each link costs little to follow.
_MOST_STEPS: Final = 2 * MAX_DEPTH


@dataclass(slots=True, eq=False)
class Node:
    """A file, folder or link of the tree.

    Attributes:
        kind: Its kind.
        name: Its name in its folder, UTF-8.
        parent: The folder that it is in; None for the tree's own.
        entry: The entry that it comes from; None for a folder that is only implied.
        children: The nodes in a folder, by name.
        leads_to: The file or folder that a link leads to in the end, once that is known.
        links: How many links are followed on the way there.
        is_followed: Whether it is being followed now.
        is_made: Whether it is a folder that is on the disk.
    """

    kind: Kind
    name: bytes = b""
    parent: Node | None = None
    entry: Entry | None = None
    children: dict[bytes, Node] = field(default_factory=dict)
    leads_to: Node | None = None
    links: int = 0
    is_followed: bool = False
    is_made: bool = False


class Tree:
    """Files, folders and links by their places.

    Args:
        most: How many there may be.

    Attributes:
        root: The tree's own folder.
        nodes: All below it.
        links: All symbolic links.
    """

    def __init__(self, most: int) -> None:
        self.root = Node(Kind.FOLDER)
        self.nodes: list[Node] = []
        self.links: list[Node] = []
        self._most = most
        self._last: tuple[tuple[bytes, ...], Node] = ((), self.root)

    def add(self, entry: Entry, place: Place) -> None:
        """Put an entry where it belongs, with the folders above it. Of two equal ones the later counts.

        Raises:
            Rejected: The place is taken by something else, or is below a file or link; or there are too many.
        """
        folder = self._folder(place.folder, entry)
        node = folder.children.get(place.name)
        if node is None:
            self._put(Node(entry.kind, place.name, folder, entry), folder)
            return
        if node.kind is not entry.kind and Kind.FOLDER in {node.kind, entry.kind}:
            raise _both(entry, (*place.folder, place.name))
        if node.entry is not None and not _are_equal(node.entry, entry):
            raise refused(refusals.TWICE, name=entry.name)
        node.entry = entry

    def _folder(self, parts: tuple[bytes, ...], entry: Entry) -> Node:
        # The last one is kept: thousands of files sixty levels deep do not ask for all folders again.
        if parts == self._last[0]:
            return self._last[1]
        folder = self.root
        for depth, part in enumerate(parts, 1):
            node = folder.children.get(part)
            if node is None:
                node = Node(Kind.FOLDER, part, folder)
                self._put(node, folder)
            elif node.kind is not Kind.FOLDER:
                raise _both(entry, parts[:depth])
            folder = node
        self._last = parts, folder
        return folder

    def _put(self, node: Node, folder: Node) -> None:
        if len(self.nodes) >= self._most:
            raise refused(refusals.TOO_MANY_ENTRIES, limit=self._most)
        self.nodes.append(node)
        folder.children[node.name] = node
        if node.kind is Kind.LINK:
            self.links.append(node)

    @property
    def base(self) -> Node:
        """The folder that runs see: the single top folder if there is one, else the tree."""
        return self._single_folder()[1]

    def has_entry(self, entry: str) -> bool:
        """Whether the entry file is where `root.find_root` looks for it; for a tree with checked links."""
        return _has_file(self.root, entry) or _has_file(self.base, entry)

    def top(self, runtime: Runtime) -> Top:
        """The top as `root.missing_entry` sees it on the disk."""
        folder, node = self._single_folder()
        children = {name.decode(): child for name, child in node.children.items()}
        names = sorted(name for name in children if not is_leftover(name))[:MOST_LISTED]
        entry = RECIPES[runtime].entry
        below = tuple(name for name in names[:MOST_LOOKED_INTO] if _has_file(children[name], entry))
        return Top(runtime, tuple(names), below, folder)

    def _single_folder(self) -> tuple[str, Node]:
        """The single top folder with its name; without one, the tree with an empty name."""
        top = [node for name, node in self.root.children.items() if not is_leftover(name.decode())]
        if len(top) == 1 and top[0].kind is Kind.FOLDER:
            return top[0].name.decode(), top[0]
        return "", self.root


class Links:
    """Follows links as the kernel does, without ever leaving the base.

    Args:
        base: The folder that they have to stay in.
        target_of: Reads the target of a link. It is asked each time: a hundred thousand would be large.
    """

    def __init__(self, base: Node, target_of: Callable[[Entry], str]) -> None:
        self._base = base
        self._target_of = target_of
        self._nested = 0

    def check(self, link: Node) -> None:
        """Check that a link leads to a file or folder inside the base.

        Raises:
            Rejected: It does not.
        """
        if self._base not in _line_of(link):
            raise self._refused(refusals.LINK_OUTSIDE, link)
        self._follow(link)

    def _follow(self, link: Node) -> Node:
        """The file or folder that the link leads to in the end."""
        if link.leads_to is not None:
            return link.leads_to
        if link.is_followed:
            raise self._refused(refusals.LINK_LOOP, link)
        link.is_followed = True
        link.links = 1
        self._nested += 1  # so that a long chain of links is refused before it is a deep recursion
        at = link.parent or self._base
        for part in self._parts_of(link):
            at = self._step(link, at, part)
            if link.links > _MOST_LINKS:
                raise self._refused(refusals.LINK_LOOP, link)
        self._nested -= 1
        link.leads_to = at
        return at

    def _step(self, link: Node, at: Node, part: bytes) -> Node:
        """Follow one part of a link's target; a link on the way counts with all links that it follows."""
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
            if self._nested >= _MOST_LINKS:
                raise self._refused(refusals.LINK_LOOP, link)
            reached = self._follow(found)
            link.links += found.links
            return reached
        return found

    def _parts_of(self, link: Node) -> list[bytes]:
        """The parts of a link's target, if it is one that can be followed."""
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
    """Whether a folder, or a link to one, has a file, or a link to one, of that name."""
    found = (folder.leads_to or folder).children.get(name.encode())
    return found is not None and (found.leads_to or found).kind is Kind.FILE


def _both(entry: Entry, parts: tuple[bytes, ...]) -> Rejected:
    return refused(refusals.FILE_AND_FOLDER, name=entry.name, other=b"/".join(parts).decode())


def _are_equal(one: Entry, other: Entry) -> bool:
    """Whether two entries for one place hold the same, as far as the directory says."""
    return (one.kind, one.bytes, one.crc) == (other.kind, other.bytes, other.crc)


def _line_of(node: Node) -> Iterator[Node]:
    """The node and the folders above it."""
    at: Node | None = node
    while at is not None:
        yield at
        at = at.parent
