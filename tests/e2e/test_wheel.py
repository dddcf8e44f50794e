"""The wheel: it has all that `nanoagent exec`, `images` and `init` need outside a checkout."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from support.agents.worker import WorkerUnderTest

ROOT: Final = Path(__file__).parents[2]
DEADLINE_S: Final = 120
COPIES: Final = (
    "docker",
    "examples",
    "src/nanosupervisor",
    "scripts/images",
    "scripts/lib.sh",
    ".dockerignore",
)
NO_SOURCES: Final = {"__pycache__"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the wheel of this tree is installed. Its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=DEADLINE_S, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    command = [
        "uv",
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, check=True, timeout=DEADLINE_S, env=os.environ | {"PATH": path})
    return folder / "site"


def called(
    installed: Path, folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the installed wheel outside the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "nanoagent", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(installed), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by relative path, or the file itself."""
    if folder.is_file():
        return {".": folder}
    found = (path for path in folder.rglob("*") if path.is_file() and not NO_SOURCES & set(path.parts))
    return {str(path.relative_to(folder)): path for path in found}


@pytest.mark.parametrize("name", COPIES)
def test_the_wheel_has_the_same_sources_as_the_checkout(installed: Path, name: str) -> None:
    ours, theirs = files_of(ROOT / name), files_of(installed / "nanoagent/_sources" / name)
    assert ours.keys() == theirs.keys() != set()
    assert [path for path in ours if not filecmp.cmp(ours[path], theirs[path], shallow=False)] == []


def test_the_wheel_has_nothing_of_the_machine_and_names_the_embedded_services_as_an_extra(
    installed: Path,
) -> None:
    (wheel,) = installed.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        fields = message_from_bytes(archive.read(metadata))
    assert [name for name in names if NO_SOURCES & set(name.split("/")) or name.endswith(".env")] == []
    assert [one for one in fields.get_all("Requires-Dist", []) if one.startswith("moto") and "local" in one]


def test_a_function_is_made_run_and_tested_without_a_checkout(
    installed: Path, worker: WorkerUnderTest, tmp_path: Path
) -> None:
    docker = {name: value for name, value in worker.environment().items() if name.startswith("DOCKER_")}
    docker |= {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    made = called(installed, tmp_path, "init", "new", "--runtime", "nodejs")
    assert made.returncode == 0, made.stderr
    assert os.access(tmp_path / "new/test.sh", os.X_OK)
    ran = called(installed, tmp_path, "exec", "new", "--input", "@new/input.json", **docker)
    assert (ran.returncode, ran.stdout) == (0, "Hello world!\n"), ran.stderr
    example = installed / "nanoagent/_sources/examples/python"
    ran = called(installed, tmp_path, "exec", str(example), "--input", f"@{example}/input.json", **docker)
    assert ran.returncode == 0, ran.stderr


def test_images_that_are_up_to_date_are_not_built_again(installed: Path, tmp_path: Path) -> None:
    """The wheel's sources give the same images as the checkout. Otherwise they would be built, in minutes."""
    ran = called(installed, tmp_path, "images")
    assert ran.returncode == 0, ran.stderr
    assert "ready: python nodejs cpp go" in ran.stderr
    assert "building" not in ran.stderr.lower()
