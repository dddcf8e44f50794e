"""`nanoagent init`: the files of each template, and folders that it leaves alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.dev import init
from nanoagent.languages.recipes import RECIPES
from nanoagent.model.errors import InvalidCall
from nanoagent.model.job import Runtime

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("runtime", Runtime)
def test_each_language_has_its_entry_file_an_input_and_a_test(runtime: Runtime, tmp_path: Path) -> None:
    written = init.write(tmp_path / "deep/new", runtime, calls_model=False)
    names = {".nanoagentignore", "expected.txt", "input.json", "test.sh", RECIPES[runtime].entry}
    assert {path.name for path in written} == names
    assert all(path.parent == tmp_path / "deep/new" and path.is_file() for path in written)
    assert os.access(tmp_path / "deep/new/test.sh", os.X_OK)


def test_the_function_that_calls_a_model_has_another_input(tmp_path: Path) -> None:
    init.write(tmp_path / "new", "python", calls_model=True)
    assert "ai_client" in (tmp_path / "new/main.py").read_text()
    assert "text" in (tmp_path / "new/input.json").read_text()


@pytest.mark.parametrize(
    ("runtime", "calls_model", "problem"),
    [
        ("ruby", False, "--runtime ruby: is not one of"),
        ("go", True, "--calls-model: the template is in python"),
    ],
)
def test_a_template_that_does_not_exist_is_refused(
    runtime: str, calls_model: Any, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidCall, match=problem):
        init.write(tmp_path / "new", runtime, calls_model=calls_model)
    assert not (tmp_path / "new").exists()


def test_no_file_is_replaced_and_none_is_written_then(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text("mine")
    with pytest.raises(InvalidCall, match=r"has input\.json already"):
        init.write(tmp_path, "python", calls_model=False)
    assert [path.name for path in tmp_path.iterdir()] == ["input.json"]
    assert (tmp_path / "input.json").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidCall, match=r"file/new: cannot be written"):
        init.write(tmp_path / "file/new", "python", calls_model=False)
