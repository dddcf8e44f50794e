"""The table of what the images have, compared with the images."""

from __future__ import annotations

import json
import subprocess

import pytest

from nanoagent.languages.explain import image
from nanoagent.model.job import Runtime
from support.sandboxes.containers import image_of

PYTHON = """
import importlib.util, json, platform, sys
modules, removed, absent = json.loads(sys.argv[1])
def exists(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
def imports(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True
print(json.dumps([
    sys.version_info[:2],
    platform.libc_ver()[1],
    [name for name in modules if not exists(name)],
    [name for name in removed if exists(name)],
    [name for name in absent if imports(name)],
]))
"""


def said_by(runtime: Runtime, *command: str) -> str:
    arguments = ["docker", "run", "--rm", "--entrypoint", command[0], image_of(runtime), *command[1:]]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_python_image_has_the_versions_and_modules_of_the_table():
    names = [sorted(image.PYTHON_MODULES), sorted(image.MODULES_REMOVED), sorted(image.MODULES_NOT_OFFERED)]
    said = json.loads(said_by(Runtime.PYTHON, "/usr/bin/python3", "-c", PYTHON, json.dumps(names)))
    version, glibc, missing, not_removed, offered = said
    assert tuple(version) == image.PYTHON
    assert tuple(map(int, glibc.split("."))) == image.GLIBC
    assert missing == []
    assert not_removed == []
    assert offered == []


def test_the_nodejs_image_has_the_versions_of_the_table():
    said = json.loads(said_by(Runtime.NODEJS, "/usr/bin/node", "-p", "JSON.stringify(process.versions)"))
    assert said["node"].split(".")[0] == str(image.NODE)
    assert said["modules"] == str(image.NODE_MODULES)


@pytest.mark.parametrize("runtime", Runtime)
def test_each_image_has_the_locales_that_the_hint_names(runtime: Runtime):
    said = said_by(runtime, "/usr/bin/locale", "-a").lower().replace("utf8", "utf-8").split()
    assert {"c.utf-8", "en_us.utf-8", "ko_kr.utf-8"} <= set(said)
