"""The check of commit subjects: its rules, the commits that it reads, and the git hook of scripts/setup."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
SCRIPT = "scripts/commit_subjects.py"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("commit_subjects", ROOT / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the rules


@pytest.mark.parametrize(
    "subject",
    [
        "Fix the drain of a worker without jobs",
        "Process messages in order",  # a verb in -ss
        "Feed the watchdog from the loop",  # a verb in -eed
        "Embed the stack",
        "Bring zip along",
        "Focus the search on parsers",
        "Restart, log and count every background task",
        "Re-read the settings",
        "Count 404s of S3 as misses",
        "X" + "x" * 66 + " long",  # 72 characters
        'Revert "Return a job to the queue before the supervisor of its container ends"',
    ],
)
def test_a_good_subject_has_no_problems(script, subject):
    assert list(script.problems(subject)) == []


@pytest.mark.parametrize(
    ("subject", "problem"),
    [
        ("Fixed the drain", "'Fixed', which is not a verb in the imperative"),
        ("Fixes the drain", "'Fixes', which is not a verb in the imperative"),
        ("Fixing the drain", "'Fixing', which is not a verb in the imperative"),
        ("Tests of the drain", "'Tests', which is not a verb in the imperative"),
        ("The drain ends in time", "'The', which is not a verb in the imperative"),
        ("What a drain returns", "'What', which is not a verb in the imperative"),
        ("fix the drain", "'fix', which is not capitalised"),
        ("fix: drain in time", "the prefix 'fix:'"),
        ("feat(worker)!: drain in time", "the prefix 'feat(worker)!:'"),
        ("Changelog: drains", "the prefix 'Changelog:'"),
        ("Fix the drain.", "a full stop"),
        ("Fix " + "x" * 69, "is 73 characters long; 72 are allowed"),
        ("Drain", "does not start with a verb"),
        ("12 fixes", "does not start with a verb"),
    ],
)
def test_a_subject_that_breaks_a_rule_has_one_problem_that_names_it(script, subject, problem):
    found = list(script.problems(subject))
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("message", "is_good"),
    [
        ("# a comment\n\nFix the drain\n\nthe reason.\n", True),
        ("Fixed the drain\n", False),
        ("Fix the drain\n# ---- >8 ----\nThe diff.\n", True),
        ("# ------------------------ >8 ------------------------\nThe diff.\n", True),  # git refuses it
        ("", True),
        ("Merge branch 'main' into a-branch-whose-name-makes-the-subject-longer-than-it-may-be\n", True),
        ("fixup! Fix the drain\n", True),
    ],
)
def test_of_a_message_the_hook_checks_the_subject(script, message, is_good):
    assert (script.check_message(message) == []) is is_good


# --- the history


class Repository:
    """A git repository with the script in it.

    Args:
        root: Its folder, which exists.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def git(self, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        return self._run("git", *identity, *arguments, folder=folder)

    def commit(self, subject: str) -> bool:
        """Commit without a change; returns whether git accepted it."""
        return self.git("commit", "--quiet", "--allow-empty", "--message", subject).returncode == 0

    def add_script(self) -> None:
        (self.root / "scripts").mkdir()
        shutil.copy(ROOT / SCRIPT, self.root / SCRIPT)
        self.git("add", ".")
        self.commit("Check commit subjects")

    def check(self, folder: Path | None = None) -> str:
        """The standard error of the check, "" if it succeeded."""
        done = self._run(sys.executable, SCRIPT, folder=folder)
        assert done.returncode == (1 if done.stderr else 0)
        return done.stderr

    def _run(self, *command: str, folder: Path | None) -> subprocess.CompletedProcess[str]:
        # Variables of the git that runs these tests, in a hook for example, name another repository.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment = kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        return subprocess.run(
            command, cwd=folder or self.root, env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    root = tmp_path / "repository"
    root.mkdir()
    made = Repository(root)
    made.git("init", "--quiet", "--initial-branch", "main")
    return made


def test_without_a_release_the_commits_since_the_script_was_added_are_checked(repository):
    repository.commit("The commits of old")
    repository.add_script()
    assert repository.check() == ""
    repository.commit("Fix a fault")
    assert repository.check() == ""
    repository.commit("Fixed a fault")
    found = repository.check()
    assert "'Fixed a fault'" in found
    assert "The commits of old" not in found


def test_after_a_release_only_its_successors_are_checked(repository):
    repository.add_script()
    repository.commit("Fixed a fault")
    repository.git("tag", "v1.0.0")
    assert repository.check() == ""
    repository.commit("Broke it again.")
    found = repository.check()
    assert "'Broke it again.'" in found
    assert "Fixed a fault" not in found


def test_a_release_before_the_script_brings_no_old_commits_back(repository):
    repository.commit("A release")
    repository.git("tag", "v0.1.0")
    repository.commit("The commits of old")
    repository.add_script()
    assert repository.check() == ""


def test_a_tag_that_is_no_release_ends_nothing(repository):
    repository.add_script()
    repository.commit("Fixed a fault")
    repository.git("tag", "before-the-move")
    assert "'Fixed a fault'" in repository.check()


def test_merges_are_not_checked(repository):
    repository.add_script()
    repository.git("checkout", "--quiet", "-b", "side")
    repository.commit("Fix a fault")
    repository.git("checkout", "--quiet", "main")
    repository.git("merge", "--quiet", "--no-ff", "--message", "Merge branch 'side'", "side")
    assert repository.check() == ""


def test_a_shallow_clone_succeeds(repository, tmp_path):
    repository.add_script()
    repository.commit("Fixed a fault")
    clone = tmp_path / "clone"
    repository.git("clone", "--quiet", "--depth", "1", repository.root.as_uri(), str(clone))
    assert repository.check(folder=clone) == ""


def test_a_folder_without_history_succeeds(repository):
    repository.add_script()
    shutil.rmtree(repository.root / ".git")
    assert repository.check() == ""


def test_a_script_that_is_not_committed_yet_checks_nothing(repository):
    repository.commit("The commits of old")
    (repository.root / "scripts").mkdir()
    shutil.copy(ROOT / SCRIPT, repository.root / SCRIPT)
    assert repository.check() == ""


def test_a_machine_without_git_succeeds(script, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.check_history(ROOT) == []


# --- the hook


@pytest.fixture
def with_setup(repository: Repository) -> Repository:
    repository.add_script()
    for name in ("setup", "lib.sh"):
        shutil.copy(ROOT / "scripts" / name, repository.root / "scripts")
    return repository


def install(repository: Repository) -> str:
    """Run the step of the set-up; returns its output."""
    done = repository._run(
        "/bin/bash", "-c", "source scripts/setup; setup_commit_hook", "scripts/test", folder=None
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hook_refuses_a_wrong_subject_and_is_installed_once(with_setup):
    assert "installed" in install(with_setup)
    assert install(with_setup) == ""
    assert with_setup.commit("Fix a fault")
    assert not with_setup.commit("Fixed a fault")


def test_the_hook_passes_on_a_branch_without_the_script(with_setup):
    install(with_setup)
    (with_setup.root / SCRIPT).unlink()
    assert with_setup.commit("Fixed a fault")


def test_the_hook_works_in_a_worktree(with_setup, tmp_path):
    tree = tmp_path / "tree"
    install(with_setup)
    with_setup.git("worktree", "add", "--quiet", "-b", "side", str(tree))
    arguments = ("commit", "--quiet", "--allow-empty", "--message")
    assert with_setup.git(*arguments, "Fixed a fault", folder=tree).returncode != 0
    assert with_setup.git(*arguments, "Fix a fault", folder=tree).returncode == 0


def test_an_older_hook_of_the_setup_is_replaced(with_setup):
    install(with_setup)
    hook = with_setup.root / ".git/hooks/commit-msg"
    hook.write_text("#!/bin/sh\n# installed by scripts/setup\nexit 1\n")
    install(with_setup)
    assert with_setup.commit("Fix a fault")


def test_a_users_own_hook_stays(with_setup):
    hook = with_setup.root / ".git/hooks/commit-msg"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    assert "not installed" in install(with_setup)
    assert hook.read_text() == "#!/bin/sh\nexit 0\n"


def test_where_hooks_have_another_folder_nothing_is_installed(with_setup, tmp_path):
    with_setup.git("config", "core.hooksPath", str(tmp_path / "hooks"))
    assert "not installed" in install(with_setup)
    assert not (tmp_path / "hooks").exists()


def test_as_a_part_of_another_repository_nothing_is_installed(with_setup):
    part = with_setup.root / "part"
    shutil.copytree(with_setup.root / "scripts", part / "scripts")
    done = with_setup._run(
        "/bin/bash", "-c", "source scripts/setup; setup_commit_hook", "scripts/test", folder=part
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert not (with_setup.root / ".git/hooks/commit-msg").exists()


def test_without_a_repository_nothing_is_installed(with_setup):
    shutil.rmtree(with_setup.root / ".git")
    assert install(with_setup) == ""
