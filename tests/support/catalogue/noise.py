"""Programs that print errors which they have handled, or texts that look like errors."""

from __future__ import annotations

from typing import Final

from nanoagent.model.cause import Cause
from support.catalogue.go import _main
from support.catalogue.program import Program, cpp, go, nodejs, python

_RETRIES: Final = """
import logging, urllib.request

try:
    urllib.request.urlopen("https://example.com", timeout=2)
except OSError:
    logging.exception("no update check")

orders = {"a": 1}
print(orders["b"])
"""
_CACHE: Final = """
import socket, sys

try:
    socket.create_connection(("localhost", 6379), timeout=1)
except OSError as exc:
    print("cache unavailable:", exc, file=sys.stderr)

def total(rows):
    return sum(row["price"] for row in rows)

print(total([{"cost": 3}]))
"""
_CONFIG: Final = """
import os, traceback

try:
    open("/etc/app/config.yml")
except OSError:
    traceback.print_exc()
try:
    region = os.environ["AWS_REGION"]
except KeyError:
    region = "local"
users = {}
print(users["kim"], region)
"""
_NODE_LOG: Final = """
const fs = require('fs');
try { fs.readFileSync('/home/kim/settings.json'); } catch (e) { console.error('no settings', e); }
try { require('pino'); } catch (e) { console.error(e.message); }
const order = {};
order.items.forEach((item) => console.log(item));
"""
_NODE_NET: Final = """
require('dns').lookup('example.com', (e) => {
  console.error('metrics are off:', e.message);
  throw new Error('the input has no user');
});
"""

PROGRAMS: Final[tuple[Program, ...]] = (
    python("noise: a logged URLError", _RETRIES, None),
    python("noise: a cache", _CACHE, None),
    python("noise: a configuration", _CONFIG, None),
    python(
        "noise: an error as text",
        "raise ValueError('the upstream said: No space left on the device of the printer')\n",
        None,
    ),
    python("noise: a key that looks like a variable", "print({'a': 1}['DATABASE_URL'])\n", None),
    python("noise: a list", "import sys\nargs = sys.argv[1:]\nrows = []\nprint(rows[0], args)\n", None),
    python(
        "noise: a command that fails",
        "import subprocess\nsubprocess.run(['ls', '/nonexistent'], check=True)\n",
        None,
    ),
    python(
        "noise: main is called", "def main():\n    pass\n\nif __name__ == '__main__':\n    main()\n", None
    ),
    python(
        "noise: a cause behind a chain",
        "import urllib.request\n\n\nclass Failed(Exception):\n    pass\n\n\ntry:\n"
        "    urllib.request.urlopen('https://example.com')\nexcept OSError as exc:\n"
        "    raise Failed('no rates') from exc\n",
        Cause.NO_NETWORK,
    ),
    nodejs("noise: logged errors", _NODE_LOG, None),
    nodejs("noise: a lookup", _NODE_NET, None),
    nodejs(
        "noise: a server that computes",
        "require('http').createServer(() => {}).listen(3000, () => { console.log('x'); while (true) {} });\n",
        Cause.COMPUTING,
        timeout_ms=1500,
    ),
    cpp(
        "noise: a handled exception",
        "#include <iostream>\n#include <new>\n#include <stdexcept>\nint main() {\n"
        "  try { throw std::bad_alloc(); } catch (std::exception &e) { std::cerr << e.what() << std::endl;"
        " }\n"
        '  throw std::runtime_error("no user");\n}\n',
        None,
    ),
    go(
        "noise: a logged dial",
        _main(
            '\tif _, err := net.Dial("tcp", "localhost:6379"); err != nil {\n\t\tlog.Print(err)\n\t}\n'
            "\tvar xs []int\n\tlog.Print(xs[len(xs)])",
            *("log", "net"),
        ),
        None,
    ),
)
