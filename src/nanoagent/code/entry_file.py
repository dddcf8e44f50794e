"""Finds the entry file of a function, and explains a zip that has none.

The entry file is at the top of the zip, or in its single top folder. Finder and Explorer leave files beside
the code (`.DS_Store`, `__MACOSX`). Such leftovers are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from nanoagent.code.refusals import shown_name
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.cause import Cause
from nanoagent.model.errors import Rejected
from nanoagent.model.job import Runtime
from nanoagent.model.result import ErrorType
from nanoagent.model.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nanoagent.code.pack import Pack

_LEFTOVERS: Final = frozenset({"__macosx", ".ds_store", "thumbs.db", "desktop.ini"})
_MOST_SHOWN: Final = 5
# With these limits, the search for a hint takes only milliseconds.
MOST_LISTED: Final = 2000
MOST_LOOKED_INTO: Final = 200

# The endings with which authors of each language name source files.
_ENDINGS: Final = {
    Runtime.PYTHON: (".py", ".pyw"),
    Runtime.NODEJS: (".js", ".mjs", ".cjs", ".ts", ".mts", ".cts", ".tsx"),
    Runtime.CPP: (".cpp", ".cc", ".cxx", ".c++", ".c"),
    Runtime.GO: (".go",),
}


def is_leftover(name: str) -> bool:
    """Whether a file or folder has a name that Finder or Explorer uses for leftovers."""
    return name.startswith("._") or name.lower() in _LEFTOVERS


def has_entry(tree: Pack, entry: str) -> bool:
    """Whether the base of a tree has the entry file.

    The base is the single top folder, or else the root. A single top folder must not be a link: `zip_tree`
    has checked the links against the whole tree, not against the folder to which a link leads.

    Args:
        tree: The tree.
        entry: The entry file's name, such as `main.py`.
    """
    return tree.file_in(tree.base, entry) is not None


def missing_entry(tree: Pack, runtime: Runtime) -> Rejected:
    """Return the refusal of an unpacked tree without an entry file.

    Args:
        tree: The tree.
        runtime: The language that the job asks for.
    """
    entry = RECIPES[runtime].entry
    children = {tree.names[number].decode(): number for number in tree.children(tree.base)}
    names = sorted(islice((name for name in children if not is_leftover(name)), MOST_LISTED))
    looked_into = names[:MOST_LOOKED_INTO]
    with_entry = tuple(name for name in looked_into if tree.file_in(children[name], entry) is not None)
    return missing_entry_in(TopFolder(runtime, tuple(names), with_entry, tree.base_name))


@dataclass(frozen=True, slots=True)
class TopFolder:
    """The folder of a zip in which the entry file was expected.

    Attributes:
        runtime: The language that the job asks for.
        names: The names of its files and folders, in order.
        with_entry: The names of its folders that have the entry file.
        folder: The name of the single top folder; empty if this is the root of the zip.
    """

    runtime: Runtime
    names: Sequence[str]
    with_entry: tuple[str, ...] = ()
    folder: str = ""


def missing_entry_in(top: TopFolder) -> Rejected:
    """Return the refusal of a zip without an entry file. It lists the files that were found, with advice."""
    entry, names = RECIPES[top.runtime].entry, top.names
    shown = Text.verbatim(", ".join(shown_name(name) for name in names[:_MOST_SHOWN]))
    if len(names) > _MOST_SHOWN:
        shown = _AND_MORE.format(names=shown, count=len(names) - _MOST_SHOWN)
    where = Text.verbatim(shown_name(top.folder)) if top.folder else _ROOT_FOLDER
    message = (_MISSING if names else _NOTHING).format(entry=entry, where=where, names=shown)
    cause, hint = _advice(top)
    return Rejected(ErrorType.INVALID_CODE, message, hint=hint, cause=cause)


def likely_language(tops: Sequence[TopFolder]) -> TopFolder | None:
    """Guess the language of a zip without an entry file.

    Args:
        tops: The top folder of the zip, as one `TopFolder` for each language.

    Returns:
        The top folder for the most likely language; None if no file points to one.
    """
    for top in tops:
        if len(top.with_entry) == 1 or RECIPES[top.runtime].entry in map(str.lower, top.names):
            return top
    for top in tops:
        if _nearest(top) is not None:
            return top
    # The advice for an empty zip, or for a zip in a zip, is the same for every language.
    return tops[0] if not tops[0].names or _is_zip_alone(tops[0]) else None


def source_rank(name: str) -> tuple[int, str]:
    """Return a sort key that puts likely entry files first.

    Other source files follow, then other files, then names that begin with a dot.
    """
    stems = {recipe.entry.partition(".")[0] for recipe in RECIPES.values()}
    if name.startswith("."):
        return 3, name
    if not any(_ending(name) in endings for endings in _ENDINGS.values()):
        return 2, name
    return int(name.lower().partition(".")[0] not in stems), name


def _advice(top: TopFolder) -> tuple[Cause, Text]:
    """Return the first cause that fits the names in the folder, and the advice."""
    entry = RECIPES[top.runtime].entry
    if len(top.with_entry) == 1:
        return Cause.ENTRY_NESTED, _MOVE_UP.format(entry=entry, folder=shown_name(top.with_entry[0]))
    for other, recipe in RECIPES.items():
        if recipe.entry in top.names:
            return Cause.OTHER_RUNTIME, _OTHER_RUNTIME.format(
                found=recipe.entry, other=other, runtime=top.runtime
            )
    near = _nearest(top)
    if near is not None:
        advice = _NEAR.get(_ending(near), _RENAME)
        cause = Cause.ENTRY_TYPESCRIPT if advice is _TYPESCRIPT else Cause.ENTRY_NAME
        return cause, advice.format(entry=entry, found=shown_name(near))
    for other in Runtime:
        if near := _nearest(TopFolder(other, top.names)):
            shown = {"found": shown_name(near), "other": other, "runtime": top.runtime}
            return Cause.OTHER_RUNTIME, _OTHER_LANGUAGE.format(**shown, entry=RECIPES[other].entry)
    if _is_zip_alone(top):
        return Cause.ZIP_IN_ZIP, _INNER_ZIP.format(found=shown_name(top.names[0]))
    return Cause.ENTRY_MISSING, _PUT_ENTRY.format(entry=entry)


def _is_zip_alone(top: TopFolder) -> bool:
    return len(top.names) == 1 and top.names[0].lower().endswith(".zip")


def _nearest(top: TopFolder) -> str | None:
    """Return the file that is most likely meant as the entry file."""
    entry = RECIPES[top.runtime].entry
    stem = entry.partition(".")[0]
    hidden_ending = [name for name in top.names if name.lower() == f"{entry}.txt"]
    alike = [name for name in top.names if _ending(name) in _ENDINGS[top.runtime]]
    same_stem = [name for name in alike if name.lower().partition(".")[0] == stem]
    for candidates in (hidden_ending, same_stem, alike):
        if candidates:
            return min(candidates)
    return None


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower() if "." in name else ""


_ROOT_FOLDER: Final = Text("its root folder", "최상위")
_AND_MORE: Final = Text("{names} and {count} more", "{names} 외 {count}개")
_MISSING: Final = Text(
    "the code zip has no {entry} in {where}; found there: {names}",
    "코드 zip의 {where}에 {entry} 파일이 없습니다. 그곳에 있는 것: {names}",
)
_NOTHING: Final = Text(
    "the code zip has no {entry} in {where}, which is empty",
    "코드 zip의 {where}이(가) 비어 있어 {entry} 파일이 없습니다",
)
_MOVE_UP: Final = Text(
    "{entry} is in the folder {folder}: make the zip inside that folder, so that {entry} is at the root.",
    "{entry} 파일이 {folder} 폴더 안에 있습니다. 그 폴더 안에서 zip을 만드세요.",
)
_OTHER_RUNTIME: Final = Text(
    "The zip has {found}, but the job's runtime is {runtime}: send the job with runtime {other}.",
    "{found} 파일이 있는데 작업의 runtime은 {runtime}입니다. runtime을 {other}(으)로 보내세요.",
)
_OTHER_LANGUAGE: Final = Text(
    "The zip has {found}, but the job's runtime is {runtime}; for runtime {other} the entry file is {entry}.",
    "{found} 파일이 있는데 작업의 runtime은 {runtime}입니다. runtime {other}의 시작 파일은 {entry}입니다.",
)
_RENAME: Final = Text(
    "Rename {found} to {entry}, or add a {entry} that starts it.",
    "{found} 파일의 이름을 {entry}(으)로 바꾸거나, 그것을 시작하는 {entry} 파일을 추가하세요.",
)
_MODULE: Final = Text(
    '{found} is an ES module: rename it to {entry}, and put {{"type": "module"}} into package.json.',
    '{found} 파일은 ES 모듈입니다. 이름을 {entry}(으)로 바꾸고 package.json에 {{"type": "module"}}을 쓰세요.',
)
_TYPESCRIPT: Final = Text(
    "{found} is TypeScript, which the worker does not compile: zip the JavaScript output of tsc, as {entry}.",
    "{found} 파일은 TypeScript입니다. tsc로 만든 JavaScript를 {entry} 이름으로 넣으세요.",
)
_TEXT_ENDING: Final = Text(
    "Rename {found} to {entry}: Explorer hides the ending .txt.",
    "{found} 파일의 이름을 {entry}(으)로 바꾸세요. 탐색기는 .txt 확장자를 숨깁니다.",
)
_INNER_ZIP: Final = Text(
    "The zip contains only another zip: upload {found} itself.",
    "zip 안에 zip이 하나 있습니다. {found} 파일 자체를 올리세요.",
)
_PUT_ENTRY: Final = Text(
    "Put {entry} at the root of the zip, or into its single top folder.",
    "zip의 루트나 하나뿐인 최상위 폴더에 {entry} 파일을 넣으세요.",
)
_NEAR: Final = {
    ".mjs": _MODULE,
    ".mts": _TYPESCRIPT,
    ".cts": _TYPESCRIPT,
    ".ts": _TYPESCRIPT,
    ".tsx": _TYPESCRIPT,
    ".txt": _TEXT_ENDING,
}
