"""Programs that import the zygote's modules in all ways that could reveal the earlier import.

They are tables of files by name, as in identity_programs.py.
"""

# ruff: noqa: E501 - lines of programs are not wrapped

from __future__ import annotations

from typing import Final

Files = dict[str, str | bytes]

# The zygote's modules for every run (zygote.py) and for runs of functions that import them (code/imports.py),
# and other modules that they import.
PRELOADED: Final = (
    *("json", "re", "traceback", "logging", "threading", "random", "datetime", "typing", "dataclasses"),
    *("enum", "pathlib", "functools", "collections", "contextlib", "base64", "uuid", "string", "csv", "copy"),
    *("math", "statistics", "decimal", "hashlib", "hmac", "tempfile", "shutil", "subprocess", "inspect"),
    *(
        "pickle",
        "importlib.util",
        "ai_client",
        "atexit",
        "gc",
        "warnings",
        "weakref",
        "urllib.request",
        "asyncio",
    ),
)
# Top-level modules that many others import.
_SHADOWED: Final = (
    "csv",
    "uuid",
    "string",
    "statistics",
    "ai_client",
    "json",
    "random",
    "re",
    "enum",
    "token",
    "_json",
)
_SHOW: Final = "print([(name, getattr(m, '__file__', None)) for name, m in sys.modules.items() if '/work' in str(getattr(m, '__file__', ''))])\n"


def _shadow(name: str, first: str, after: str = "") -> Files:
    """Return `lib/NAME.py` with an attribute that the standard library's module lacks, and its importer."""
    main = f"import sys\n{first}\ntry:\n    import {name}\n    print({name}.x, {name}.__file__)\nexcept Exception as e: print(type(e), e)\n"
    return {"main.py": main + after + _SHOW, f"lib/{name}.py": "x = 'own'\n"}


_TRY: Final = "for name in ('json', 'logging', 'inspect', 'tempfile', 'statistics', 'pickle', 'urllib.request'):\n    try: __import__(name)\n    except Exception as e: print(name, type(e), e)\n"
_PATCH: Final = "calls = []\ndef patched(*a, **k):\n    calls.append(a[:1])\n    return original(*a, **k)\n"

IMPORT_PROGRAMS: Final[dict[str, str | bytes | Files]] = {
    # --- sys.modules at the start
    "modules_at_start": "import sys\nprint(list(sys.modules))\n",
    **{f"modules_after_{name}": f"import {name}, sys\nprint(list(sys.modules))\n" for name in PRELOADED},
    "modules_after_all": f"import {', '.join(PRELOADED)}, sys\nprint(list(sys.modules))\n",
    "modules_after_all_backwards": f"import {', '.join(reversed(PRELOADED))}, sys\nprint(list(sys.modules))\n",
    "modules_after_an_error": "import atexit, sys\natexit.register(lambda: print(list(sys.modules)))\n1/0\n",
    "submodules_are_not_bound_early": "import importlib, collections, json, concurrent\nprint(hasattr(importlib, 'util'), hasattr(json, 'tool'), hasattr(collections, 'abc'), list(vars(json)), list(vars(importlib)))\nimport importlib.util\nprint(importlib.util, list(vars(importlib)))\n",
    "submodule_first": "import json.decoder, sys\nprint(json.decoder is sys.modules['json.decoder'], json.JSONDecoder is json.decoder.JSONDecoder)\n",
    "from_package_import_submodule": "from importlib import util, abc\nfrom json import decoder\nprint(util, abc, decoder)\n",
    "import_star": "from json import *\nfrom re import *\nfrom datetime import *\nprint(sorted(globals()))\n",
    "import_by_name": "import importlib, builtins\nm = importlib.import_module('.decoder', 'json')\nprint(m, builtins.__import__('os.path'), builtins.__import__('json', fromlist=['tool']).tool)\n",
    "find_spec": "import importlib.util, sys\nfor name in ('json', 'csv', 'json.tool', 'zlib', '_json', 'nothing'): print(importlib.util.find_spec(name), name in sys.modules)\n",
    "spec_and_names_of_modules": "import json, csv, datetime\nfor m in (json, csv, datetime): print(m, m.__spec__, m.__loader__.name, m.__cached__, m.__package__)\n",
    "import_error_by_hand": "import importlib\nimportlib.import_module('json.nothing')\n",
    "import_error_of_a_name": "from logging import nothing\n",
    "annotation_only_if_typing_is_loaded": "import dataclasses, sys\nprint('typing' in sys.modules)\n@dataclasses.dataclass\nclass A:\n    x: 'typing.ClassVar[int]' = 1\nprint(dataclasses.fields(A))\n",
    # --- modules of the program
    **{f"lib_{name}": _shadow(name, "sys.path.insert(0, 'lib')") for name in _SHADOWED},
    **{f"lib_{name}_then_others": _shadow(name, "sys.path.insert(0, 'lib')", _TRY) for name in _SHADOWED},
    "others_then_lib_string": _shadow("string", f"import logging, json\nsys.path.insert(0, 'lib')\n{_TRY}"),
    "lib_absolute": _shadow(
        "csv", "import os\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), 'lib'))"
    ),
    "lib_appended": _shadow("csv", "sys.path.append('lib')"),
    "lib_in_a_new_path": _shadow("csv", "sys.path = ['lib', *sys.path]"),
    "lib_by_chdir": _shadow("csv", "import os\nsys.path.insert(0, '')\nos.chdir('lib')"),
    "lib_by_site": _shadow("csv", "import site\nsite.addsitedir('lib')\nsys.path.insert(0, sys.path.pop())"),
    "lib_package": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport json, statistics\nprint(json.x, json.inner.y, statistics.z)\n",
        "lib/json/__init__.py": "from . import inner\nx = 1\n",
        "lib/json/inner.py": "y = 2\n",
        "lib/statistics/__init__.py": "z = 3\n",
    },
    "lib_folder_without_code": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport json\nprint(json.__file__)\n",
        "lib/json/data.txt": "x",
    },
    "lib_of_what_is_looked_for": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport subprocess\nprint(subprocess._mswindows)\n",
        "lib/msvcrt.py": "print('own msvcrt')\n",
    },
    "own_of_what_is_looked_for": {
        "main.py": "import subprocess\nprint(subprocess._mswindows)\n",
        "msvcrt.py": "print('own msvcrt')\n",
    },
    "lib_written_by_the_program": "import os, sys\nos.mkdir('lib')\nopen('lib/csv.py', 'w').write('x = 1')\nsys.path.insert(0, 'lib')\nimport csv\nprint(csv.x)\n",
    "module_written_by_the_program": "open('csv.py', 'w').write('x = 1')\nimport importlib\nimportlib.invalidate_caches()\nimport csv, json\nprint(csv.x, json)\n",
    "lib_as_an_archive": "import sys, zipfile\nwith zipfile.ZipFile('/tmp/lib.zip', 'w') as z: z.writestr('csv.py', 'x = 1'); z.writestr('uuid/__init__.py', 'y = 2')\nsys.path.insert(0, '/tmp/lib.zip')\nimport csv, uuid\nprint(csv.x, csv.__file__, uuid.y, uuid.__file__)\n",
    "path_without_the_library": "import sys\nsys.path = [p for p in sys.path if p != '/usr/lib/python3.13']\ntry: import csv\nexcept ImportError as e: print(e)\nimport time, math\nprint(math)\n",
    "path_that_is_empty": "import sys\nsys.path.clear()\nimport csv\n",
    "path_is_a_copy_of_the_library": "import os, shutil, sys\nos.mkdir('lib')\nos.system('cp /usr/lib/python3.13/csv.py lib/')\nsys.path.insert(0, 'lib')\nimport csv\nprint(csv.__file__, csv.Sniffer.__module__)\n",
    "path_inside_a_package": "import sys, json\njson.__path__.insert(0, 'lib')\nimport json.tool\nimport json.scanner\nprint(json.scanner.__file__)\n",
    "frozen_modules_win": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport runpy, importlib.util, time, math, itertools\nprint(runpy, time, itertools)\n",
        "lib/runpy.py": "1/0",
        "lib/time.py": "1/0",
        "lib/itertools.py": "1/0",
    },
    "classes_of_a_shadowed_module": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport decimal, pickle\nx = pickle.loads(pickle.dumps(decimal.Decimal('1')))\nprint(repr(x), type(x).__module__)\n",
        "lib/decimal.py": "class Decimal:\n    def __init__(self, x): self.x = x\n    def __repr__(self): return 'own ' + self.x\n",
    },
    # --- changes of sys.modules by the program
    "module_replaced": "import sys, types\nsys.modules['string'] = types.ModuleType('string')\ntry: import logging\nexcept Exception as e: print(type(e), e)\n",
    "module_forbidden": "import sys\nsys.modules['_json'] = None\nsys.modules['_csv'] = None\nimport json.scanner\nprint(json.scanner.c_make_scanner, json.loads('[1]'))\nimport csv\n",
    "module_deleted_and_imported_again": "import sys, json, re\na, b = json, json.decoder\nfor name in [n for n in sys.modules if n.startswith('json')]: del sys.modules[name]\nimport json\nprint(a is json, b is json.decoder, a.JSONDecodeError is json.JSONDecodeError, list(sys.modules)[-6:])\n",
    "reload": "import importlib, json, csv\na, b = json.loads, csv.DictReader\nprint(importlib.reload(json) is json, json.loads is a, importlib.reload(csv) is csv, csv.DictReader is b)\n",
    "errors_are_the_same_everywhere": "import json, json.decoder\nfrom json import JSONDecodeError\ntry: json.loads('{')\nexcept json.decoder.JSONDecodeError as e: print(type(e) is JSONDecodeError, e)\n",
    "pickle_of_library_classes": "import datetime, decimal, pickle, collections, sys\nobjects = [datetime.datetime(2020, 1, 1), decimal.Decimal('1.5'), collections.OrderedDict(a=1), collections.Counter('aab')]\nprint(pickle.loads(pickle.dumps(objects)) == objects)\n",
    # --- modules changed before another import
    "changed_re": f"import re\noriginal = re.compile\n{_PATCH}re.compile = patched\nimport json, logging, string\nprint(len(calls), calls[:3])\n",
    "changed_time": "import time\ntime.monotonic = time.time = lambda: 42.0\nimport threading, logging, queue\nprint(threading._time(), queue.time())\n",
    "changed_builtin": "import builtins\noriginal = builtins.property\nclass property(original): pass\nbuiltins.property = property\nimport fractions, uuid\nprint(type(vars(uuid.UUID)['fields']))\n",
    "changed_os": "import os\nos.getpid = lambda: 7\nos.name = 'posix'\nimport logging, tempfile\nprint(logging.LogRecord('', 0, '', 0, '', (), None).process)\n",
    "changed_after_the_import": "import json, re\nre.compile = None\nimport json.decoder\nprint(json.loads('[1]'))\n",
    "changed_platform": "import sys\nsys.platform = 'win32'\ntry: import subprocess\nexcept ImportError as e: print(e)\n",
    "changed_streams_are_no_change": "import io, sys\nsys.stdout = sys.stderr\nsys.argv = ['x']\nimport json, logging\nprint(json, logging)\n",
    # --- other ways to find and to load
    "finder_of_the_program": "import sys\nclass F:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n        print('asked for', name)\nsys.meta_path.insert(0, F)\nimport json, csv\n",
    "finder_at_the_end": "import sys\nclass F:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n        print('asked for', name)\nsys.meta_path.append(F)\nimport json, csv, subprocess\n",
    "finder_that_gives_its_own": "import importlib.machinery, sys\nclass L:\n    def create_module(self, spec): return None\n    def exec_module(self, module): module.x = 'own'\nclass F:\n    def find_spec(self, name, path=None, target=None):\n        if name == 'csv': return importlib.machinery.ModuleSpec(name, L())\nsys.meta_path.insert(0, F())\nimport csv\nprint(csv.x, csv)\n",
    "finders_taken_away": "import sys\nsys.meta_path.clear()\ntry: import csv\nexcept ImportError as e: print(e)\n",
    "path_hook_of_the_program": "import sys\ndef hook(path):\n    print('hook', path)\n    raise ImportError\nsys.path_hooks.insert(0, hook)\nsys.path_importer_cache.clear()\nimport csv\n",
    "import_replaced": "import builtins\noriginal = builtins.__import__\ndef mine(name, *a, **k):\n    print('import', name)\n    return original(name, *a, **k)\nbuiltins.__import__ = mine\nimport csv, json.decoder\n",
    "import_events": "import sys\nevents = []\nsys.addaudithook(lambda e, a: events.append(a[0]) if e == 'import' else None)\nimport json, csv, math\nprint(events)\n",
    "import_traced": "import sys\nlines = []\nsys.settrace(lambda f, e, a: lines.append((f.f_code.co_filename, f.f_code.co_name)) if 'frozen' not in f.f_code.co_filename else None)\nimport csv\nsys.settrace(None)\nprint(len(lines), lines[:3])\n",
    "import_profiled": "import sys\nnames = []\nsys.setprofile(lambda f, e, a: names.append(f.f_code.co_filename) if e == 'call' else None)\nimport csv\nsys.setprofile(None)\nprint('/usr/lib/python3.13/csv.py' in names)\n",
    "frames_of_an_import": {
        "main.py": "import helper\n",
        "helper.py": "import sys\nf = sys._getframe()\nwhile f: print(f.f_code.co_filename, f.f_code.co_name); f = f.f_back\n",
    },
    "imports_in_threads": "import sys, threading, _thread\nnames = ['json', 'csv', 'uuid', 'logging', 'statistics', 'inspect', 'decimal', 'pickle'] * 4\nfound = []\nts = [threading.Thread(target=lambda n=n: found.append(__import__(n))) for n in names]\nfor t in ts: t.start()\nfor t in ts: t.join()\nprint(len(found), {m.__name__ for m in found} == set(names), all(sys.modules[m.__name__] is m for m in found))\n",
    "import_in_a_del": "class A:\n    def __del__(self):\n        import csv\n        print(csv.__name__)\na = A()\ndel a\n",
    "import_at_exit": "import atexit\ndef f():\n    import json, csv\n    print(json.loads('[1]'), csv.__name__)\natexit.register(f)\n",
    "import_after_fork": "import os, sys\nif os.fork() == 0:\n    import json\n    print(json.dumps([1]), len(sys.modules))\nelse:\n    os.wait()\n",
    "circular_imports_through_the_library": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport json\nprint(json.dumps({'a': 1}))\n",
        "lib/re.py": "import json\nprint('json' in __import__('sys').modules, hasattr(json, 'dumps'))\n",
    },
    # --- sub-interpreters
    "sub_interpreter": "import _interpreters as i\nx = i.create()\nprint(i.run_string(x, 'import sys\\nprint(sys.argv, sys.orig_argv, sys.path, sys.flags, list(sys.modules), flush=True)\\nimport json, csv\\nprint(json.__file__, flush=True)'))\ni.destroy(x)\n",
    "sub_interpreter_finds_siblings": {
        "main.py": "import _interpreters as i\nx = i.create()\nprint(i.run_string(x, 'import helper\\nprint(helper.x, helper.__file__, flush=True)'))\n",
        "helper.py": "x = 1\n",
    },
    "name_of_a_library_module": {"main.py": "import turtle\nturtle.nothing\n", "turtle.py": "x = 1\n"},
    "command_line": "print(open('/proc/self/cmdline').read().split('\\0'))\nimport subprocess, os\nprint(subprocess.getoutput(f'tr \"\\\\0\" \" \" </proc/{os.getpid()}/cmdline'))\n",
}

# For a zygote that has also imported LIBRARIES.
LIBRARIES: Final = ("numpy", "pandas", "PIL", "requests", "httpx", "asyncio")
LIBRARY_PROGRAMS: Final[dict[str, str | bytes | Files]] = {
    **{
        f"modules_after_{name}": f"import {name}, sys\nprint(list(sys.modules), sys.meta_path, sys.path_hooks)\n"
        for name in ("numpy", "PIL.Image", "httpx", "six", "dateutil.parser", "json", "urllib3.util")
    },
    # Code compiled by mypyc and Cython imports in special ways: see hidden_modules.Recorder.
    "modules_after_requests": "import requests, sys\nprint(sorted(sys.modules), sys.meta_path)\n",
    "finders_after_pandas": "import pandas, sys\nprint(sys.meta_path, pandas.__file__)\nimport dateutil.parser, six.moves\nprint(dateutil.parser.isoparse('2020-01-01'), sys.meta_path)\n",
    "modules_at_start": IMPORT_PROGRAMS["modules_at_start"],
    "vendored_requests": {
        "main.py": "import sys\nsys.path.insert(0, 'vendor')\nimport requests\nprint(requests.x, requests.__file__, 'urllib3' in sys.modules)\nimport httpx\nprint(httpx.__file__)\n",
        "vendor/requests/__init__.py": "x = 'own'\n",
    },
    "vendored_urllib3": {
        "main.py": "import sys\nsys.path.insert(0, 'vendor')\ntry: import requests\nexcept Exception as e: print(type(e), e)\nimport urllib3\nprint(urllib3.x)\n",
        "vendor/urllib3/__init__.py": "x = 'own'\n",
    },
    "vendored_numpy": {
        "main.py": "import sys\nsys.path.insert(0, 'vendor')\nimport numpy\nprint(numpy.x, numpy.__file__, [m for m in sys.modules if m.startswith('numpy')])\n",
        "vendor/numpy/__init__.py": "from . import sub\nx = sub.x\n",
        "vendor/numpy/sub.py": "x = 'own'\n",
    },
    "vendored_copy_of_requests": "import os, shutil, sys\nshutil.copytree('/usr/lib/python3/dist-packages/requests', 'vendor/requests')\nsys.path.insert(0, 'vendor')\nimport requests\nprint(requests.__file__, requests.adapters.__file__, requests.packages.urllib3.__file__)\n",
    "what_requests_looks_for": {
        "main.py": "import sys\nsys.path.insert(0, 'vendor')\nimport requests\nprint(requests.compat.has_simplejson)\n",
        "vendor/simplejson.py": "class JSONDecodeError(ValueError): pass\n",
    },
    "aliases_of_requests": "import requests.packages.urllib3 as u, urllib3, sys\nprint(u is urllib3, requests.packages.idna is sys.modules['idna'])\n",
    "numpy_after_a_change": "import time\noriginal = time.monotonic\ntime.monotonic = lambda: original()\nimport numpy\nprint(numpy.arange(3).sum(), numpy.linalg.norm([3, 4]))\n",
    "numpy_beside_an_own_module": {
        "main.py": "import sys\nsys.path.insert(0, 'lib')\nimport string\nprint(string.x)\nimport numpy\nprint(numpy.arange(3).sum())\n",
        "lib/string.py": "from importlib.machinery import SourceFileLoader as L\nglobals().update(vars(L('std', '/usr/lib/python3.13/string.py').load_module()))\nx = 'own'\n",
    },
    "submodules_of_libraries": "import numpy, PIL, urllib3\nprint(hasattr(PIL, 'Image'), hasattr(urllib3, 'contrib'), hasattr(numpy, 'testing'))\nimport PIL.Image\nprint(PIL.Image.new('L', (2, 2)).size)\n",
    "logger_of_requests": "import logging\nimport requests\nprint(logging.getLogger('urllib3').handlers)\n",
}
