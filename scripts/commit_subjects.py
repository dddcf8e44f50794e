#!/usr/bin/env python3
"""Check that commit subjects are imperative and at most 72 characters long.

    scripts/commit_subjects.py                    check the commits since the last release tag
    scripts/commit_subjects.py --message FILE     check one message, as the git hook commit-msg does

The first form is a step of `make check`. It skips commits that are older than this script, and merges. It
succeeds if there is no git history to read. `scripts/setup` installs the hook.

Only the standard library is used: the hook must also run before the virtual environment exists.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
MAX_LENGTH: Final = 72
RELEASE_TAGS: Final = "v[0-9]*"
RULES: Final = f"""\
The subject is the first line of a commit message. It
  * is at most {MAX_LENGTH} characters long,
  * starts with a capitalised verb in the imperative: "Fix", not "Fixed", "Fixes" or "Fixing",
  * has no prefix such as "fix:" and no full stop at the end.
The reason for the change belongs in the body, after an empty line."""

# Verbs with the ending of another form.
_ENDING_ED: Final = frozenset(
    {"embed", "feed", "need", "seed", "shed", "speed", "exceed", "proceed", "succeed"}
)
_ENDING_ING: Final = frozenset({"bring", "ping", "ring", "string", "swing"})
_ENDING_S: Final = frozenset({"bias", "canvas", "focus"})  # verbs in -ss ("Pass", "Process") need no entry
# Frequent first words of subjects that do not start with a verb.
_NOT_VERBS: Final = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "it", "its", "we", "our", "no", "not"),
        *("all", "any", "both", "each", "every", "many", "more", "most", "some"),
        *("and", "but", "if", "or", "so", "when", "where", "which", "while", "who", "why", "how", "what"),
        *(
            "after",
            "also",
            "at",
            "before",
            "by",
            "for",
            "from",
            "in",
            "into",
            "of",
            "on",
            "only",
            "to",
            "with",
        ),
        *("made", "was", "were", "is", "are", "has", "had", "new", "old"),
    )
)
_PREFIX: Final = re.compile(r"[\w/.()-]+!?:\s")
_WORD: Final = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*(?=[\s,])")
_SCISSORS: Final = re.compile(r"# -+ >8 -+")


def problems(subject: str) -> Iterator[str]:
    """Yield one phrase for each broken rule, such as "is 80 characters long"."""
    if len(subject) > MAX_LENGTH and not subject.startswith('Revert "'):  # git writes these
        yield f"is {len(subject)} characters long; {MAX_LENGTH} are allowed"
    if subject.endswith("."):
        yield "ends with a full stop"
    if prefix := _PREFIX.match(subject):
        yield f"starts with the prefix {prefix[0].strip()!r}"
        return
    word = _WORD.match(subject)
    if word is None:
        yield "does not start with a verb, followed by its object"
    elif not word[0][0].isupper():
        yield f"starts with {word[0]!r}, which is not capitalised"
    elif not is_imperative(word[0].lower()):
        yield f"starts with {word[0]!r}, which is not a verb in the imperative"


def is_imperative(word: str) -> bool:
    """Return whether a first word, in lower case, can be a verb in the imperative.

    The rule knows no grammar. It rejects the endings of other verb forms and of plurals, and words that are
    known not to be verbs.
    """
    if word in _NOT_VERBS:
        return False
    if word.endswith("ed"):
        return word in _ENDING_ED
    if word.endswith("ing"):
        return word in _ENDING_ING
    return not word.endswith("s") or word.endswith("ss") or word in _ENDING_S


def subject_of(message: str) -> str:
    """Return the subject of a message as an editor leaves it: the first line that is not a comment."""
    for line in message.splitlines():
        if _SCISSORS.match(line):  # `git commit --verbose` puts the diff below
            break
        if line.strip() and not line.startswith("#"):
            return line.strip()
    return ""


def check_message(message: str) -> list[str]:
    """Return the problems of a message that is about to be committed.

    An empty message has none: git itself refuses it. Merges and the messages of `git commit --fixup` and
    `--squash` have none either: git writes them, and a rebase removes the latter two.
    """
    subject = subject_of(message)
    if not subject or subject.startswith(("Merge ", "fixup! ", "squash! ", "amend! ")):
        return []
    return [f"{subject!r} {problem}" for problem in problems(subject)]


def check_history(repository: Path) -> list[str]:
    """Return the problems of the commits since the last release tag, newest commit first."""
    return [
        f"{commit[:10]} {subject!r} {problem}"
        for commit, subject in _commits(repository)
        for problem in problems(subject)
    ]


def _commits(repository: Path) -> Iterator[tuple[str, str]]:
    """Yield the hash and the subject of each commit to check, none where git cannot tell."""
    tag = _git(repository, "describe", "--tags", "--abbrev=0", "--match", RELEASE_TAGS)
    script = Path(__file__).resolve().relative_to(ROOT).as_posix()
    added = _git(repository, "log", "--diff-filter=A", "--format=%H", "--", script).split()
    if not added:
        return
    # In a shallow clone the oldest commit seems to add every file, so that commit is the start there.
    excluded = [f"^{name}" for name in (tag.strip(), added[-1]) if name]
    for line in _git(repository, "log", "--no-merges", "--format=%H %s", "HEAD", *excluded).splitlines():
        commit, _, subject = line.partition(" ")
        yield commit, subject


def _git(repository: Path, *arguments: str) -> str:
    """Return the output of a git command, "" if it failed or git is not installed."""
    command = ["git", "-C", str(repository), *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def main(arguments: list[str] | None = None) -> int:
    """Check what the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(description="Check commit subjects.")
    parser.add_argument("--message", type=Path, help="file with one commit message")
    given = parser.parse_args(arguments)
    if given.message is None:
        found = check_history(ROOT)
    else:
        found = check_message(given.message.read_text(errors="replace"))
    if found:
        print("Commit subjects to change:", *found, "", RULES, sep="\n", file=sys.stderr)  # noqa: T201 - a command's output
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
