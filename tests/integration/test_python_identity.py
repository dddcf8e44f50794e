"""A program in a child of the zygote against the same program started by `python3 main.py`, byte for byte.

And what must not be the same: whatever two runs could guess of each other.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest

from nanoagent.code.imports import STANDARD
from nanoagent.supervisor.wire import ImportsState
from support.checks.matrix import only_in_test_all
from support.programs.languages import documented_version
from support.sandboxes.identity import ENVIRONMENT, interpreters
from support.sandboxes.identity_programs import PROGRAMS
from support.sandboxes.import_programs import IMPORT_PROGRAMS, LIBRARIES, LIBRARY_PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.sandboxes.identity import Interpreters, Outcome

_ADDRESS = re.compile(rb"0x[0-9a-f]{6,}")  # of objects in messages; they differ from start to start
_HELLO = {"main.py": b"print('hello')"}


@pytest.fixture(scope="module")
def both() -> Iterator[Interpreters]:
    """A zygote that has imported all that it imports for a function with many standard modules."""
    with interpreters() as made:
        made.ask(do="start", modules=list(STANDARD))
        yield made


@pytest.fixture(scope="module")
def generic() -> Iterator[Interpreters]:
    """A zygote that has imported only the modules for every function."""
    with interpreters() as made:
        yield made


def files_of(program: str | bytes | dict[str, str | bytes]) -> dict[str, bytes]:
    files = program if isinstance(program, dict) else {"main.py": program}
    return {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}


def without_addresses(outcome: Outcome) -> Outcome:
    return dataclasses.replace(
        outcome, stdout=_ADDRESS.sub(b"0x", outcome.stdout), stderr=_ADDRESS.sub(b"0x", outcome.stderr)
    )


def assert_same(both: Interpreters, files: dict[str, bytes], **changes: Any) -> Outcome:
    plain = without_addresses(both.run("plain", files, **changes))
    assert without_addresses(both.run("zygote", files, **changes)) == plain
    return plain


def test_the_version_is_the_documented_one(both):
    program = {"main.py": b"import sys\nprint(*sys.version_info[:2], sep='.')"}
    assert both.run("plain", program).stdout.decode().strip() == documented_version("python")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_cannot_tell_which_interpreter_it_got(both, name):
    assert_same(both, files_of(PROGRAMS[name]))


# --- the same in a process of the importer


_INSTALLED = {
    "installed/__init__.py": "from . import part\nfrom .part import value\nstate = []\n",
    "installed/part.py": "value = 1\n",
    "single.py": "import decimal\n",
}
_INSTALLED_IMPORTS = "import installed.part\nfrom installed import value\nimport single\n"


@pytest.fixture(scope="module")
def reusing() -> Iterator[Interpreters]:
    """An importer that has imported packages of the code, beside the zygote of `both`."""
    with interpreters() as made:
        made.ask(do="start", modules=list(STANDARD))
        assert made.install(_INSTALLED, [], _INSTALLED_IMPORTS) == ImportsState.REUSED
        yield made


def assert_same_with_importer(reusing: Interpreters, files: dict[str, bytes], **changes: Any) -> Outcome:
    plain = without_addresses(reusing.run("plain", files, **changes))
    assert without_addresses(reusing.run("importer", files, **changes)) == plain
    return plain


# A fork of the importer runs a program with the code of a fork of the zygote, which runs all programs. So
# `make test` has the programs that import, and every third of the others.
_OTHERS = [name for name in PROGRAMS if name not in IMPORT_PROGRAMS]


@pytest.mark.parametrize("name", only_in_test_all(PROGRAMS, {*IMPORT_PROGRAMS, *_OTHERS[::3]}))
def test_a_program_cannot_tell_that_its_packages_are_imported(reusing, name):
    assert_same_with_importer(reusing, files_of(PROGRAMS[name]))


@pytest.fixture(scope="module")
def with_installed_libraries() -> Iterator[Interpreters]:
    """An importer for code that has large libraries in its zip, and a zygote without them."""
    copies = [
        "numpy",
        "pandas",
        "dateutil",
        "pytz",
        "requests",
        "urllib3",
        "idna",
        "certifi",
        "chardet",
    ]
    with interpreters() as made:
        made.ask(do="start", modules=list(STANDARD))
        imports = "import numpy, pandas, requests\nimport numpy.random\n"
        assert made.install({}, copies, imports) == ImportsState.REUSED
        yield made


@pytest.mark.parametrize(
    "name", ["numpy", "pandas", "numpy_error", "module_del", "traceback", *LIBRARY_PROGRAMS]
)
def test_a_program_cannot_tell_that_the_libraries_in_its_zip_are_imported(with_installed_libraries, name):
    program = LIBRARY_PROGRAMS[name] if name in LIBRARY_PROGRAMS else PROGRAMS[name]
    assert_same_with_importer(with_installed_libraries, files_of(program))


@pytest.mark.parametrize(
    "name", ["numpy_global", "numpy_generator", "numpy_state", "pandas_sample", "random"]
)
def test_two_runs_with_libraries_in_the_zip_never_draw_the_same(with_installed_libraries, name):
    program = {"main.py": _SECRETS[name].encode()}
    drawn = [with_installed_libraries.run("importer", program) for _ in range(3)]
    assert [ran.stderr for ran in drawn] == [b""] * 3
    assert len({ran.stdout for ran in drawn}) == 3


# --- jobs that are started plainly after all, and other words on the command line


_SHOW = {
    "main.py": b"import sys\nprint(sys.argv, sys.orig_argv, sys.flags, sys.path)",
    "other.py": b"print(__file__)",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ("/usr/bin/python3", "main.py", "a", "-b", "", "ä"),
        ("/usr/bin/python3", "other.py"),
        ("/usr/bin/python3", "./other.py"),
        ("/usr/bin/python3", "/work/other.py"),
        ("/usr/bin/python3", "-u", "main.py"),
        ("/usr/bin/python3", "-c", "print(1)"),
        ("/usr/bin/python3", "-m", "other"),
        ("/usr/bin/python3",),
        ("/usr/bin/python3", "missing.py"),
        ("/usr/bin/python3", "."),
        ("/usr/bin/python3.13", "main.py"),
        ("/bin/echo", "main.py"),
    ],
)
def test_the_command_line_is_followed(both, arguments):
    assert_same(both, _SHOW, arguments=arguments, payload="print('from stdin')")


@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONUNBUFFERED": "1"},
        {"PYTHONPATH": "/tmp"},
        {"PYTHONHASHSEED": "0"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONDONTWRITEBYTECODE": "1"},
        {"PYTHONOPTIMIZE": "2"},
        {"LANG": "C"},
        {"LC_ALL": "POSIX"},
        {"TZ": "Asia/Seoul"},
        {"HOME": "/output"},
        {"OTHER": "x", "EMPTY": "", "EQUALS": "a=b=c", "TEXT": "ä\n안"},
        {"PAYLOAD_FILE": "/nowhere"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_environment_takes_effect(both, changes):
    program = (
        b"import os, site, sys, time\n"
        b"print(sys.flags, sys.path, sys.stdout.encoding, sys.stdout.errors, sys.stdout.write_through,\n"
        b"      time.tzname, site.USER_SITE, sys.warnoptions, dict(os.environ))\n"
        b"os._exit(0) if 'PYTHONUNBUFFERED' in os.environ else None\n"
    )
    assert_same(both, {"main.py": program}, environment=ENVIRONMENT | changes)


def test_a_command_that_is_not_there_is_reported(both):
    ran = both.run("zygote", _HELLO, arguments=["/usr/bin/nothing", "main.py"])
    assert ran.status == 127 << 8
    assert b"/usr/bin/nothing" in ran.stderr


def test_a_script_that_is_a_link_is_followed_as_ever(both):
    files = {
        "main.py": b"import os, sys\nos.symlink('/usr/lib/python3.13/this.py', 'link.py')\nprint('made')"
    }
    assert_same(both, files)


# --- what must not be shared


_SECRETS = {
    "random": "import random; print(random.random(), random.getrandbits(64))",
    "random_after_fork_hooks": "import random; print([random.randint(0, 10**9) for _ in range(3)])",
    "uuid4": "import uuid; print(uuid.uuid4())",
    "uuid1": "import uuid; print(uuid.uuid1().clock_seq, uuid.uuid1().node)",
    "secrets": "import secrets; print(secrets.token_hex())",
    "urandom": "import os; print(os.urandom(16))",
    "temporary_names": "import tempfile; print(next(tempfile._get_candidate_names()), tempfile.mktemp())",
    "openssl": "import ssl; print(ssl.RAND_bytes(16))",
    "multiprocessing_key": "import multiprocessing as m; print(bytes(m.current_process().authkey))",
    "numpy_global": "import numpy as np; print(np.random.rand(3), np.random.randint(10**9))",
    "numpy_generator": "import numpy as np; print(np.random.default_rng().random(3))",
    "numpy_state": "import numpy as np; print(np.random.get_state()[1][:4])",
    "pandas_sample": "import pandas as pd; print(list(pd.Series(range(10**5)).sample(5)))",
    "mime_boundary": "import email.generator as g; print(g._make_boundary())",
}


@pytest.fixture(scope="module", params=["none", "all"])
def sandboxed(request) -> Iterator[Interpreters]:
    """With process numbers that are always the same, so that no library notices a fork by them."""
    with interpreters(namespaces=True) as made:
        if request.param == "all":
            modules = ["numpy", "pandas", "requests", "httpx", "PIL", "multiprocessing", "draws_at_import"]
            made.ask(do="start", modules=[*STANDARD, *modules])
        yield made


def test_process_numbers_are_the_same_in_each_run(sandboxed):
    program = {"main.py": b"import os; print(os.getpid(), os.getppid())"}
    assert len({sandboxed.run("zygote", program).stdout for _ in range(3)}) == 1


@pytest.mark.parametrize("name", _SECRETS)
def test_two_runs_never_draw_the_same(sandboxed, name):
    program = {"main.py": _SECRETS[name].encode()}
    drawn = [sandboxed.run("zygote", program) for _ in range(3)]
    assert [ran.stderr for ran in drawn] == [b""] * 3
    assert len({ran.stdout for ran in drawn}) == 3


def test_a_run_finds_nothing_of_the_zygote_in_its_environment(both):
    program = b"print(sorted(open('/proc/self/environ').read().strip('\\0').split('\\0')))"
    shown = both.run("zygote", {"main.py": program}).stdout.decode()
    assert shown == "['HOME=/tmp', 'LANG=C.UTF-8', 'PATH=/usr/local/bin:/usr/bin:/bin']\n"


def test_a_run_may_not_look_into_the_zygote(both):
    program = (
        b"import os\n"
        b"for name in ('mem', 'environ', 'maps', 'fd', 'cwd'):\n"
        b"    look = {'fd': os.listdir, 'cwd': os.readlink}.get(name, lambda path: open(path).read())\n"
        b"    try: look(f'/proc/{os.getppid()}/{name}')\n"
        b"    except PermissionError: print(name)\n"
    )
    assert both.run("zygote", {"main.py": program}).stdout == b"mem\nenviron\nmaps\nfd\ncwd\n"


# --- more modules for a container that is bound


_WHAT_IS_LOADED = {
    "main.py": b"maps = open('/proc/self/maps').read()\n"
    b"print('_multiarray_umath' in maps, 'PIL/_imaging' in maps)"
}


@pytest.fixture
def fresh(generic: Interpreters) -> Interpreters:
    generic.ask(do="start", modules=[])
    return generic


def test_modules_are_imported_when_a_function_wants_them(fresh):
    assert fresh.ask(do="preload", modules=["numpy", "PIL"], entries=["main.py", "data", "README.md"])["ok"]
    assert fresh.run("zygote", _WHAT_IS_LOADED).stdout == b"True True\n"


@pytest.mark.parametrize(
    "entry", ["numpy", "numpy.py", "dateutil", "dateutil.pyc", "pytz.cpython-313-x86_64-linux-gnu.so"]
)
def test_not_when_the_code_has_one_of_its_own(fresh, entry):
    modules = ["pandas"]
    assert not fresh.ask(do="preload", modules=modules, entries=["main.py", entry])["ok"]


@pytest.mark.parametrize("entry", ["numpy.txt", "numpy_data.py", "pandas.csv", ".numpy"])
def test_other_names_do_no_harm(fresh, entry):
    assert fresh.ask(do="preload", modules=["numpy", "pandas"], entries=["main.py", entry])["ok"]


def test_what_the_image_does_not_have_is_left_to_the_code(fresh):
    assert fresh.ask(do="preload", modules=["boto3"], entries=["main.py", "boto3"])["ok"]
    files = {"main.py": b"import boto3\nprint(boto3.__file__)", "boto3/__init__.py": b""}
    assert_same(fresh, files)


def test_what_a_preloaded_module_prints_is_not_in_the_output_of_a_run(fresh):
    assert fresh.ask(do="preload", modules=["this"], entries=["main.py"])["ok"]
    assert_same(fresh, _HELLO)


def test_a_module_that_cannot_be_imported_costs_the_zygote(fresh):
    assert not fresh.ask(do="preload", modules=["asyncio.windows_events"], entries=[])["ok"]


@pytest.fixture(scope="module")
def with_libraries() -> Iterator[Interpreters]:
    with interpreters() as made:
        made.ask(do="start", modules=[*STANDARD, *LIBRARIES])
        yield made


_COMMON = (
    "numpy",
    "pandas",
    "numpy_error",
    "module_del",
    "asyncio",
    "traceback",
    "exit_4",
    "modules_after_all",
)


@pytest.mark.parametrize("name", [*_COMMON, *LIBRARY_PROGRAMS])
def test_programs_are_the_same_with_more_modules_ready(with_libraries, name):
    program = LIBRARY_PROGRAMS[name] if name in LIBRARY_PROGRAMS else PROGRAMS[name]
    assert_same(with_libraries, files_of(program))


@pytest.mark.parametrize("name", _COMMON)
def test_programs_are_the_same_with_fewer_modules_ready(fresh, name):
    assert_same(fresh, files_of(PROGRAMS[name]))


def test_ten_thousand_bytes_of_arguments_and_a_large_payload_arrive(both):
    payload = "x" * 90_000
    program = b"import os, sys\nfor text in sys.argv[1], os.environ['PAYLOAD'], input(): print(len(text))"
    arguments = ["/usr/bin/python3", "main.py", "y" * 10_000]
    ran = both.run(
        "zygote",
        {"main.py": program},
        arguments=arguments,
        environment=ENVIRONMENT | {"PAYLOAD": payload},
        payload=payload,
    )
    assert ran.stdout == b"10000\n90000\n90000\n"


def test_a_process_that_gets_no_job_ends_without_a_word(both):
    assert both.ask(do="abandon") == {"status": 0, "stdout": "", "stderr": ""}


def test_processor_time_is_reported(both):
    program = base64.b64encode(b"import time\nwhile time.process_time() < 0.2: pass").decode()
    request = {"files": {"main.py": program}, "payload": "{}", "environment": ENVIRONMENT}
    answer = both.ask(do="zygote", arguments=["/usr/bin/python3", "main.py"], **request)
    assert answer["cpu_us"] >= 190_000
