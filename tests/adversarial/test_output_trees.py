"""Output trees of any shape: what arrives is what a model of forty lines says.

hypothesis makes a tree and limits; a program in a container builds the tree from its description; what
arrives is compared whole with what the model says: files and bytes, refusals and reasons, in order.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nanoagent.model.job import Runtime
from nanoagent.model.result import Isolation, Start
from support.checks.outputs import COUNT, DEPTH, LINK, NAMED_REFUSALS, SIZE, SPECIAL, TOTAL, Left, left_by
from support.sandboxes.adversarial import yard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.sandboxes.containers import Ran

TREES = 30  # at each level
MOST_DEPTH = 32
MOST_PATH_BYTES = 1024

# A node is ["file", size, mode], ["link", target], ["fifo"], ["socket"], ["whiteout"], ["same", size] (a file
# with a second name beside it), or ["folder", {name in hex: node}, mode].
Node = list[Any]

BUILDER = {
    "main.py": """
import json, os, socket, stat, sys

def content(name, size):
    return (name * (size // len(name) + 1))[:size]

def build(name, node):
    kind = node[0]
    if kind in ("file", "same"):
        with open(name, "wb") as file:
            # The end alone of a large one: the rest is a hole.
            size = node[1]
            if size > 65536:
                file.truncate(size)
                file.seek(size - len(name))
                file.write(name)
            else:
                file.write(content(name, size))
        if kind == "file":
            os.chmod(name, node[2])
        else:
            os.link(name, b"second")
    elif kind == "link":
        os.symlink(node[1], name)
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "whiteout":
        os.mknod(name, stat.S_IFCHR, 0)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(b"short")
        os.rename(b"short", name)
    else:
        os.mkdir(name)
        os.chdir(name)
        fill(node[1])
        os.chdir(b"..")
        os.chmod(name, node[2])

def fill(folder):
    for name, node in folder.items():
        build(bytes.fromhex(name), node)

os.chdir(b"/output")
fill(json.load(sys.stdin))
"""
}

# --- trees

plain_bytes = st.integers(1, 255).filter(lambda byte: byte != ord("/")).map(lambda byte: bytes([byte]))
odd_names = st.sampled_from(
    [b"...", b"..x", b" ", b"\n", b"%2e%2e", b"-", b"\xff", b"a\\b", b"n" * 255, b"\x1b[2J"]
)
any_names = st.lists(plain_bytes, min_size=1, max_size=12).map(b"".join)
# What the builder itself makes in a folder is not to be in its own way.
names = (odd_names | any_names).filter(lambda name: name not in {b".", b"..", b"second", b"short"})
modes = st.sampled_from([0o644, 0, 0o7777, 0o200, 0o111])
sizes = st.integers(0, 300) | st.sampled_from([4096, 65536, 65537, 200_000, 1 << 20, (1 << 40) + 1])
leaves = st.one_of(
    st.builds(lambda size, mode: ["file", size, mode], sizes, modes),
    st.builds(lambda size, mode: ["file", size, mode], sizes, modes),
    st.builds(lambda target: ["link", target], st.sampled_from(["/etc/passwd", "..", "/proc/self/mem", "x"])),
    st.sampled_from([["fifo"], ["socket"], ["whiteout"], ["same", 5]]),
)


def folder_of(children: dict[bytes, Node], mode: int) -> Node:
    """A folder, in which one file at most has a second name."""
    kept, has_same = {}, False
    for name, node in children.items():
        if node[0] == "same" and has_same:
            continue
        has_same = has_same or node[0] == "same"
        kept[name.hex()] = node
    return ["folder", kept, mode]


def folders(nodes: st.SearchStrategy[Node], most: int = 6) -> st.SearchStrategy[Node]:
    return st.builds(folder_of, st.dictionaries(names, nodes, max_size=most), modes)


def chain(node: Node, name: bytes, length: int) -> Node:
    """A node that lies that many folders deep."""
    for _ in range(length):
        node = ["folder", {name.hex(): node}, 0o755]
    return node


# Long names reach the limit on paths at the fifth, short ones that on depth.
chains = st.builds(
    chain, leaves, st.sampled_from([b"d", b"n" * 20, b"n" * 31, b"n" * 255]), st.integers(2, 36)
)
trees = folders(st.recursive(leaves | chains, folders, max_leaves=25), most=12)


@dataclass
class Limits:
    """Of one run, as `wire.RunRequest` has them."""

    output_max_files: int
    output_max_file_bytes: int
    output_max_total_bytes: int


limits = st.builds(
    Limits,
    st.integers(0, 6) | st.just(100),
    st.sampled_from([0, 100, 4096, 200_000, 1 << 20]),
    st.sampled_from([0, 300, 70_000, 4 << 20]),
)


# --- the model


@dataclass
class Model:
    """What is to arrive."""

    limits: Limits
    files: dict[str, bytes] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    total: int = 0

    def folder(self, path: bytes, node: Node, depth: int) -> None:
        children = {bytes.fromhex(name): child for name, child in node[1].items()}
        for name, child in list(children.items()):
            if child[0] == "same":
                children[b"second"] = [*child, name]
        for name in sorted(children):
            self.entry(path + b"/" + name if path else name, name, children[name], depth)

    def entry(self, path: bytes, name: bytes, node: Node, depth: int) -> None:
        kind = node[0]
        if len(path) > MOST_PATH_BYTES or (kind == "folder" and depth >= MOST_DEPTH):
            self.refuse(path, DEPTH)
        elif kind == "folder":
            self.folder(path, node, depth + 1)
        elif kind == "link":
            self.refuse(path, LINK)
        elif kind not in {"file", "same"}:
            self.refuse(path, SPECIAL)
        elif len(self.files) >= self.limits.output_max_files:
            self.refuse(path, COUNT)
        elif node[1] > self.limits.output_max_file_bytes:
            self.refuse(path, SIZE)
        elif self.total + node[1] > self.limits.output_max_total_bytes:
            self.refuse(path, TOTAL)
        else:
            written_as = node[2] if kind == "same" and len(node) > 2 else name
            self.total += node[1]
            self.files[os.fsdecode(path)] = content(written_as, node[1])

    def refuse(self, path: bytes, reason: str) -> None:
        self.refused.append((path[:1024].decode(errors="replace"), reason))

    def left(self) -> Left:
        more = len(self.refused) - NAMED_REFUSALS
        summed_up = [("", f"{more} more files were not uploaded")] if more > 0 else []
        return Left(self.files, self.refused[:NAMED_REFUSALS] + summed_up)


def content(name: bytes, size: int) -> bytes:
    """As the builder writes it."""
    if size > 65536:
        return bytes(size - len(name)) + name
    return (name * (size // len(name) + 1))[:size]


# --- the test


class Ground:
    """Containers of one level, for a test without a loop of its own."""

    def __init__(self, level: Isolation, runner: asyncio.Runner, held: AsyncExitStack) -> None:
        self._runner = runner
        self._containers = runner.run(held.enter_async_context(yard(level, (Runtime.PYTHON,))))
        self._function = self._containers.function(Runtime.PYTHON, BUILDER)
        self.tried = 0
        self.run(["folder", {}, 0])

    def run(self, tree: Node, **changes: int) -> Ran:
        """A run that makes that tree. A size of terabytes is the run's own limit on files to forbid."""
        said = json.dumps(tree[1])
        return self._runner.run(
            self._containers.run(self._function, said, file_size_bytes=(1 << 63) - 1, **changes)
        )


@pytest.fixture(scope="module", params=(Isolation.SANDBOX, Isolation.SHARED), ids=str)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with asyncio.Runner() as runner:
        held = AsyncExitStack()
        try:
            yield Ground(request.param, runner, held)
        finally:
            runner.run(held.aclose())


@hypothesis_settings(
    deadline=None,
    max_examples=TREES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(tree=trees, allowed=limits)
def arrives_as_the_model_says(ground: Ground, tree: Node, allowed: Limits) -> None:
    ran = ground.run(tree, **vars(allowed))
    assert ran.execution.error_type is None, ran.stderr
    assert ran.execution.collected.clean
    assert ran.acquired.start == Start.HOT
    model = Model(allowed)
    model.folder(b"", tree, 1)
    arrived = left_by(ran)
    assert list(arrived.files.items()) == list(model.files.items())
    assert arrived.refused == model.left().refused
    ground.tried += 1


def test_from_any_tree_exactly_the_regular_files_within_the_limits_arrive(
    ground: Ground, record_property: Callable[..., None]
):
    arrives_as_the_model_says(ground)
    assert ground.tried >= TREES
    record_property("tried", ["outputs", ground.tried])
