"""Programs in Python that were used to write the rules."""

from __future__ import annotations

from typing import Final

from nanoagent.model.cause import Cause
from nanoagent.model.job import Runtime
from support.catalogue import libraries
from support.catalogue.program import Program, python

_HANDLER: Final = """
import json

def lambda_handler(event, context):
    name = event.get("name", "world")
    return {"statusCode": 200, "body": json.dumps({"hello": name})}
"""
_FLASK_LIKE: Final = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

print("listening on 8080", flush=True)
HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""
_ENGINE: Final = "engine/_core.cpython-313-x86_64-linux-gnu.so"
_PACKAGE: Final = {"engine/__init__.py": "from engine._core import run\n"}
_USES_ENGINE: Final = "import engine\nprint(engine.run())\n"

PROGRAMS: Final[tuple[Program, ...]] = (
    # --- packages and files
    python("opencv", "import cv2\nprint(cv2.__version__)\n", Cause.MODULE_MISSING),
    python(
        "requirements are not vendored",
        "from flask import Flask\napp = Flask(__name__)\nprint(app)\n",
        Cause.NOT_VENDORED,
        files={"requirements.txt": "flask==3.0.3\n# web\nrequests>=2\n"},
    ),
    python(
        "an import in a helper",
        "from lib.report import render\nprint(render())\n",
        Cause.MODULE_MISSING,
        files={"lib/__init__.py": "", "lib/report.py": "import jinja2\n\ndef render():\n    return jinja2\n"},
    ),
    python("tkinter", "import tkinter as tk\nroot = tk.Tk()\n", Cause.MODULE_NOT_OFFERED),
    python("distutils", "from distutils.version import LooseVersion\n", Cause.MODULE_NOT_OFFERED),
    python(
        "own module left out",
        "from utils.parser import parse\nprint(parse('x'))\n",
        Cause.FILE_NOT_IN_ZIP,
        files={"utils/__init__.py": "", "utils/other.py": ""},
    ),
    python(
        "a file named like a module",
        "import random\nprint(random.randint(1, 6))\n",
        Cause.MODULE_SHADOWED,
        files={"random.py": "import random\nvalue = random.random()\n"},
    ),
    python(
        "a script named like a module",
        "import statistics\nprint(statistics.mean([1, 2]))\n",
        Cause.MODULE_SHADOWED,
        files={"statistics.py": "total = 3\n"},
    ),
    python(
        "pip at run time",
        "import subprocess, sys\n"
        "subprocess.check_call([sys.executable, '-m', 'pip', 'install', 'requests'])\n",
        Cause.RUNTIME_INSTALL,
    ),
    python(
        "ffmpeg",
        "import subprocess\nsubprocess.run(['ffmpeg', '-i', 'a.mp4', 'a.mp3'], check=True)\n",
        Cause.COMMAND_MISSING,
    ),
    python(
        "a path of the author's computer",
        "data = open('/home/minsu/project/data.csv').read()\nprint(len(data))\n",
        Cause.LOCAL_PATH,
    ),
    python(
        "a file with a capital letter",
        "print(open('data/words.txt').read())\n",
        Cause.FILE_NAME_CASE,
        files={"data/Words.txt": "a\nb\n"},
    ),
    # --- native code
    python(
        "a library for ARM",
        _USES_ENGINE,
        Cause.NATIVE_ARCHITECTURE,
        files={**_PACKAGE, _ENGINE: libraries.elf(libraries.ARM64)},
    ),
    python(
        "a library for musl",
        _USES_ENGINE,
        Cause.NATIVE_MUSL,
        files={**_PACKAGE, "engine/_core.so": libraries.elf(needed="libc.musl-x86_64.so.1")},
    ),
    python(
        "a library for a newer glibc",
        _USES_ENGINE,
        Cause.NATIVE_GLIBC,
        files={**_PACKAGE, _ENGINE: libraries.elf(needed="libc.so.6", version="GLIBC_2.99")},
    ),
    python(
        "a library for another Python",
        _USES_ENGINE,
        Cause.NATIVE_PYTHON_VERSION,
        files={**_PACKAGE, "engine/_core.cpython-311-x86_64-linux-gnu.so": libraries.elf()},
    ),
    python(
        "a library for macOS",
        _USES_ENGINE,
        Cause.NATIVE_OPERATING_SYSTEM,
        files={**_PACKAGE, "engine/_core.cpython-313-darwin.so": libraries.MACH_O},
    ),
    # --- entry
    python("a handler", _HANDLER, Cause.NEVER_CALLED),
    Program("app.py", Runtime.PYTHON, {"app.py": "print(1)\n", "requirements.txt": "x\n"}, Cause.ENTRY_NAME),
    Program(
        "a folder in a folder",
        Runtime.PYTHON,
        {"README.md": "x", "src/main.py": "print(1)\n", "tests/a.py": ""},
        Cause.ENTRY_NESTED,
    ),
    # --- network
    python(
        "urllib",
        "import urllib.request\nprint(urllib.request.urlopen('https://api.example.com/v1').read())\n",
        Cause.NO_NETWORK,
    ),
    python(
        "requests without a network",
        "import requests\nprint(requests.get('https://pypi.org/simple').status_code)\n",
        Cause.NO_NETWORK,
        network="none",
    ),
    python(
        "redis on localhost",
        "import socket\ns = socket.create_connection(('localhost', 6379), timeout=3)\ns.send(b'PING')\n",
        Cause.LOCAL_SERVICE,
    ),
    python("a web server", _FLASK_LIKE, Cause.SERVER, timeout_ms=1500),
    # --- input
    python(
        "stdin twice",
        "import json, sys\nraw = sys.stdin.read()\nprint(len(raw))\nevent = json.load(sys.stdin)\n"
        "print(event)\n",
        Cause.STDIN_CONSUMED,
    ),
    python("arguments", "import sys\nname = sys.argv[1]\nprint('hello', name)\n", Cause.NO_ARGUMENTS),
    python(
        "a variable of the author's shell",
        "import os\nurl = os.environ['DATABASE_URL']\nprint(url)\n",
        Cause.VARIABLE_MISSING,
    ),
    # --- files, processes, memory
    python(
        "a read-only path",
        "with open('/var/log/app.log', 'a') as log:\n    log.write('started')\n",
        Cause.READ_ONLY_PATH,
    ),
    python(
        "too many files",
        "held = []\nwhile True:\n    held.append(open('/dev/null'))\n",
        Cause.OPEN_FILES,
    ),
    python(
        "too many threads",
        "import threading, time\n"
        "for _ in range(5000):\n    threading.Thread(target=time.sleep, args=(3,), daemon=True).start()\n",
        Cause.PROCESSES,
        memory_mb=512,
    ),
    python("recursion", "def walk(n):\n    return walk(n + 1)\n\nwalk(0)\n", Cause.RECURSION),
    python(
        "a large list", "rows = [b'x' * 1000 for _ in range(10 ** 7)]\n", Cause.OUT_OF_MEMORY, memory_mb=64
    ),
    python(
        "files in /tmp",
        "import time\nwith open('/tmp/data.bin', 'wb') as file:\n    for _ in range(400):\n"
        "        file.write(bytes(10 ** 6))\n        time.sleep(0.005)  # the next part of a download\n",
        Cause.OUT_OF_MEMORY_FILES,
        memory_mb=64,
    ),
    # --- time
    python(
        "a lock",
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\n",
        Cause.WAITING,
        timeout_ms=1500,
    ),
    python(
        "a loop",
        "print('begin', flush=True)\nn = 0\nwhile True:\n    n += 1\n",
        Cause.COMPUTING,
        timeout_ms=1500,
    ),
    # --- text
    python(
        "a CSV of Excel",
        "import csv\nfor row in csv.reader(open('data.csv')):\n    print(row)\n",
        Cause.TEXT_ENCODING,
        files={"data.csv": "이름,나이\n김철수,30\n".encode("cp949")},
    ),
    Program(
        "source in CP949",
        Runtime.PYTHON,
        {"main.py": "print('안녕')\n".encode("cp949")},
        Cause.SOURCE_ENCODING,
    ),
    python(
        "a locale",
        "import locale\nlocale.setlocale(locale.LC_ALL, 'fr_FR.UTF-8')\nprint(1)\n",
        Cause.LOCALE_MISSING,
    ),
    python(
        "a time zone",
        "from zoneinfo import ZoneInfo\nprint(ZoneInfo('Asia/Seul'))\n",
        Cause.TIME_ZONE,
    ),
    python("os._exit", "import os\nprint('result: 42')\nos._exit(0)\n", Cause.NOT_FLUSHED),
    # --- no hint
    python("KeyError", "event = {'a': 1}\nprint(event['b'])\n", None),
    python("an assertion", "total = 3\nassert total == 4, 'wrong total'\n", None),
    python("exit 3", "import sys\nprint('quota exceeded', file=sys.stderr)\nsys.exit(3)\n", None),
    python("a division", "def mean(xs):\n    return sum(xs) / len(xs)\n\nprint(mean([]))\n", None),
    python("an attribute", "value = None\nprint(value.strip())\n", None),
    python("a missing bracket", "print('a'\n", None),
    python(
        "a name in another module",
        "from json import parse\nprint(parse('{}'))\n",
        None,
    ),
    python(
        "a handled import error",
        "try:\n    import orjson as json\nexcept ImportError as exc:\n    print(exc,"
        " file=__import__('sys').stderr)\n"
        "    import json\nprint(json.loads('{')['a'])\n",
        None,
    ),
)
