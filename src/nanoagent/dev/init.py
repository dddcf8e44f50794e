"""The command `nanoagent init`: writes a small function with an example input and a test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from nanoagent.model.errors import InvalidCall
from nanoagent.model.job import Runtime

_TEMPLATES: Final = Path(__file__).parent / "templates"
# The folders of templates/ whose files a new function gets.
_GREETING: Final = {runtime: ("common", "greeting", str(runtime)) for runtime in Runtime}
_MODEL: Final = ("common", "model")


def write(folder: Path, runtime: str, *, calls_model: bool) -> list[Path]:
    """Write the files of a new function into a folder, and return their paths.

    Args:
        folder: The folder, which is made if necessary. It must not have any of the files.
        runtime: The language.
        calls_model: Whether the function calls a model.

    Raises:
        InvalidCall: There is no such template, the folder has one of the files, or it cannot be written. No
            file is written.
    """
    parts = _parts(runtime, calls_model=calls_model)
    # An installation may have folders with byte code here.
    files = {path.name: path for part in parts for path in part.iterdir() if path.is_file()}
    if existing := sorted(name for name in files if (folder / name).exists()):
        raise InvalidCall([f"{folder}: has {', '.join(existing)} already; name another folder"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [Path(shutil.copy(path, folder / name)) for name, path in sorted(files.items())]
    except OSError as exc:
        raise InvalidCall([f"{folder}: cannot be written: {exc}"]) from exc


def _parts(runtime: str, *, calls_model: bool) -> list[Path]:
    if runtime not in set(Runtime):
        raise InvalidCall([f"--runtime {runtime}: is not one of {', '.join(Runtime)}"])
    if calls_model and runtime != Runtime.PYTHON:
        raise InvalidCall([f"--calls-model: the template is in python, not in {runtime}"])
    return [_TEMPLATES / part for part in (_MODEL if calls_model else _GREETING[Runtime(runtime)])]
