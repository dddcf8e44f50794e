"""Programs that were not used to write the rules: copied answers, scripts, and ports of services."""

from __future__ import annotations

from typing import Final

from nanoagent.model.cause import Cause
from support.catalogue import libraries
from support.catalogue.go import _main
from support.catalogue.program import Program, cpp, go, nodejs, python

_SCRAPER: Final = """
import sys
import logging
from concurrent.futures import ThreadPoolExecutor

logging.basicConfig(level=logging.INFO)
log = logging.getLogger(__name__)

try:
    import requests
    from bs4 import BeautifulSoup
except ImportError as e:
    log.error("please install dependencies: %s", e)
    raise

def fetch(url):
    return BeautifulSoup(requests.get(url, timeout=10).text, "html.parser").title

with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(fetch, ["https://news.ycombinator.com"] * 4)))
"""
_PANDAS_EXCEL: Final = """
import pandas as pd

df = pd.DataFrame({"month": ["2024-01", "2024-02"], "sales": [10, 20]})
df.to_excel("/output/report.xlsx", index=False)
"""
_NUMPY_BROKEN: Final[dict[str, str | bytes]] = {
    "numpy/__init__.py": "from . import _core\n",
    "numpy/_core/__init__.py": (
        "try:\n    from . import _multiarray_umath\nexcept ImportError as exc:\n"
        "    raise ImportError('''\n\nIMPORTANT: PLEASE READ THIS FOR ADVICE ON HOW TO SOLVE THIS ISSUE!\n\n"
        "Importing the numpy C-extensions failed. This error can happen for\nmany reasons.''') from exc\n"
    ),
    "numpy/_core/_multiarray_umath.cpython-310-x86_64-linux-gnu.so": libraries.elf(),
}
_CLICK: Final = """
import argparse

parser = argparse.ArgumentParser(description="Resize an image")
parser.add_argument("input")
parser.add_argument("--width", type=int, default=800)
args = parser.parse_args()
print(args.input, args.width)
"""
_MULTI: Final = """
import multiprocessing as mp

def work(n):
    total = 0
    while True:
        total += n

if __name__ == "__main__":
    print("starting", flush=True)
    processes = [mp.Process(target=work, args=(i,)) for i in range(2)]
    [p.start() for p in processes]
    [p.join() for p in processes]
"""
_EXPRESS: Final = """
const http = require('http');
const PORT = process.env.PORT || 3000;
const app = http.createServer((req, res) => {
  res.setHeader('Content-Type', 'application/json');
  res.end(JSON.stringify({ status: 'up' }));
});
app.listen(PORT, '0.0.0.0', () => {
  console.log(`Server is running on port ${PORT}`);
});
process.on('SIGTERM', () => app.close());
"""
_BFS: Final = """
#include <bits/stdc++.h>
using namespace std;
int n, m;
vector<int> adj[100005];
bool seen[100005];
void dfs(int u) { seen[u] = true; for (int v : adj[u]) if (!seen[v]) dfs(v); }
int main() {
    ios::sync_with_stdio(false);
    cin.tie(nullptr);
    cin >> n >> m;
    for (int i = 0; i < m; i++) { int a, b; cin >> a >> b; adj[a].push_back(b); }
    dfs(1);
    cout << "ok" << endl;
    throw runtime_error("unreachable node");
}
"""

PROGRAMS: Final[tuple[Program, ...]] = (
    # --- Python
    python(
        "check: a scraper",
        _SCRAPER,
        Cause.NOT_VENDORED,
        files={"requirements.txt": "requests\nbeautifulsoup4==4.12\n"},
    ),
    python("check: a workbook", _PANDAS_EXCEL, Cause.MODULE_MISSING),
    python(
        "check: NumPy for 3.10",
        "import numpy as np\nprint(np.zeros(3))\n",
        Cause.NATIVE_PYTHON_VERSION,
        files=_NUMPY_BROKEN,
    ),
    python(
        "check: OpenCV needs libGL",
        "import engine\n",
        Cause.SYSTEM_LIBRARY_MISSING,
        files={"engine.so": libraries.elf(needed="libGL.so.1")},
    ),
    python("check: argparse", _CLICK, Cause.NO_ARGUMENTS),
    python("check: busy children", _MULTI, Cause.COMPUTING, timeout_ms=2000),
    python(
        "check: dotenv",
        "import os\nfrom dotenv import load_dotenv\nload_dotenv()\nprint(os.getenv('TOKEN'))\n",
        Cause.MODULE_MISSING,
        files={".env": "TOKEN=x\n"},
    ),
    python(
        "check: async client",
        "import asyncio, httpx\n\nasync def main():\n    async with httpx.AsyncClient() as c:\n"
        "        r = await c.get('https://example.org')\n        print(r.text)\n\nasyncio.run(main())\n",
        Cause.NO_NETWORK,
    ),
    python(
        "check: smtp",
        "import smtplib\ns = smtplib.SMTP('smtp.gmail.com', 587)\ns.starttls()\n",
        Cause.NO_NETWORK,
    ),
    python("check: input()", "name = input()\nage = int(input())\nprint(name, age)\n", Cause.STDIN_CONSUMED),
    python(
        "check: interactive", "while True:\n    line = input('> ')\n    print(line)\n", Cause.STDIN_CONSUMED
    ),
    python(
        "check: a main function",
        "import json\n\n\ndef handler(event, context=None):\n    return {'ok': True}\n\n\nresult = None\n",
        Cause.NEVER_CALLED,
    ),
    python(
        "check: sqlite in a read-only folder",
        "import sqlite3\ndb = sqlite3.connect('/data/app.db')\ndb.execute('create table t (a)')\n",
        None,
    ),
    python(
        "check: a cache folder",
        "import os\nos.makedirs('/opt/app/cache', exist_ok=True)\n",
        Cause.READ_ONLY_PATH,
    ),
    python(
        "check: a bundled tool",
        "import subprocess\nprint(subprocess.check_output(['./bin/tool', '--version']))\n",
        Cause.NOT_EXECUTABLE,
        files={"bin/tool": "#!/bin/sh\necho 1\n"},
    ),
    python(
        "check: a tool for ARM",
        "import subprocess\nprint(subprocess.check_output(['./bin/tool', '--version']))\n",
        Cause.NATIVE_ARCHITECTURE,
        files={"bin/tool": libraries.elf(libraries.ARM64)},
        executable=frozenset({"bin/tool"}),
    ),
    python(
        "check: a matrix",
        "import numpy as np\na = np.ones((200_000, 200_000))\nprint(a.sum())\n",
        Cause.ALLOCATION_TOO_LARGE,
        memory_mb=256,
    ),
    python(
        "check: print in ASCII",
        "import sys\nsys.stdout.reconfigure(encoding='ascii')\nprint('안녕하세요')\n",
        Cause.TEXT_ENCODING,
    ),
    python(
        "check: a text of Windows",
        "import pandas as pd\nprint(pd.read_csv('sales.csv'))\n",
        Cause.TEXT_ENCODING,
        files={"sales.csv": "품목,금액\n사과,100\n".encode("cp949")},
    ),
    python(
        "check: a queue",
        "import queue\nq = queue.Queue()\nprint('x', flush=True)\nq.get()\n",
        Cause.WAITING,
        timeout_ms=1500,
    ),
    python(
        "check: a custom exception",
        "class QuotaError(Exception):\n    pass\n\n\ndef run():\n    try:\n        {}['x']\n    except"
        " KeyError as e:\n"
        "        raise QuotaError('no quota for user') from e\n\n\nrun()\n",
        None,
    ),
    python(
        "check: a data frame", "import pandas as pd\ndf = pd.DataFrame({'a': [1]})\nprint(df['b'])\n", None
    ),
    python(
        "check: bad JSON",
        "import json\nprint(json.loads(\"{'a': 1}\"))\n",
        None,
    ),
    python(
        "check: a file that the program forgot",
        "import json\nprint(json.load(open('/tmp/state.json')))\n",
        None,
    ),
    # --- Node.js
    nodejs(
        "check: sharp",
        "const sharp = require('sharp');\nsharp('a.png').resize(100).toFile('/output/a.png');\n",
        Cause.NOT_VENDORED,
        files={
            "package.json": '{"dependencies": {"sharp": "^0.33.0", "uuid": "^9"}}',
            "package-lock.json": "{}",
        },
    ),
    nodejs("check: an express app", _EXPRESS, Cause.SERVER, timeout_ms=1500),
    nodejs(
        "check: an async handler",
        "'use strict';\n\nconst handler = async (event, context) => {\n  return JSON.stringify(event);\n};\n"
        "\n"
        "module.exports = { handler };\n",
        Cause.NEVER_CALLED,
    ),
    nodejs(
        "check: TypeScript output",
        "import { readFileSync } from 'node:fs';\nimport { parse } from './parser';\n"
        "console.log(parse(readFileSync(0)));\n",
        Cause.ESM_EXTENSION,
        files={
            "package.json": '{"type":"module","name":"x"}',
            "parser.js": "export const parse = (x) => x;\n",
        },
    ),
    nodejs(
        "check: module.exports in a module",
        "export const a = 1;\nmodule.exports = { a };\n",
        Cause.COMMONJS_IN_ESM,
        files={"package.json": '{"type":"module"}'},
    ),
    nodejs(
        "check: mongo",
        "const net = require('net');\nconst s = net.createConnection({ host: 'localhost', port: 27017 });\n"
        "s.on('error', (e) => { console.error('MongoNetworkError:', e); process.exit(1); });\n",
        Cause.LOCAL_SERVICE,
    ),
    nodejs(
        "check: https.get",
        "require('https').get('https://www.google.com', (res) => res.pipe(process.stdout));\n",
        Cause.NO_NETWORK,
    ),
    nodejs(
        "check: localStorage",
        "const token = window.localStorage.getItem('token');\nconsole.log(token);\n",
        Cause.BROWSER_API,
    ),
    nodejs(
        "check: a promise that nothing resolves",
        "console.log('start');\nconst keep = setInterval(() => {}, 10000);\nnew Promise(() => {}).then(()"
        " => clearInterval(keep));\n",
        Cause.WAITING,
        timeout_ms=1500,
    ),
    nodejs(
        "check: callback error",
        "require('fs').readFile('/tmp/none.json', (e, d) => { if (e) throw e; });\n",
        None,
    ),
    nodejs(
        "check: a validation",
        "const z = { parse(x) { if (!x.id) throw new RangeError('id must be positive'); } };\nz.parse({});\n",
        None,
    ),
    # --- C++
    cpp("check: a contest program", _BFS, None),
    cpp(
        "check: json",
        "#include <nlohmann/json.hpp>\nint main() { nlohmann::json j; return 0; }\n",
        Cause.HEADER_MISSING,
    ),
    cpp(
        "check: C code",
        '#include "sum.h"\n#include <iostream>\nint main() { std::cout << sum(1, 2); }\n',
        Cause.C_LINKAGE,
        files={"sum.h": "int sum(int, int);\n", "sum.c": "int sum(int a, int b) { return a + b; }\n"},
    ),
    cpp(
        "check: new[]",
        "#include <iostream>\nint main() { long n = 1L << 50; char *p = new char[n]; std::cout << p[0]; }\n",
        Cause.ALLOCATION_TOO_LARGE,
    ),
    cpp(
        "check: a mutex",
        "#include <iostream>\n#include <mutex>\nint main() { std::cout << 1 << std::endl; std::mutex m;"
        " m.lock(); m.lock(); }\n",
        Cause.WAITING,
        timeout_ms=1500,
    ),
    cpp("check: stoi", '#include <string>\nint main() { return std::stoi("abc"); }\n', None),
    # --- Go
    go(
        "check: a channel",
        _main("\tch := make(chan int)\n\tch <- 1\n\tfmt.Println(<-ch)", "fmt"),
        Cause.DEADLOCK,
    ),
    go(
        "check: sqlite3",
        _main('\tsql.Open("sqlite3", "a.db")', "database/sql", "github.com/mattn/go-sqlite3"),
        Cause.GO_MODULE_MISSING,
    ),
    go(
        "check: an own package",
        _main("\tfmt.Println(helpers.Add(1, 2))", "fmt", "helpers"),
        Cause.GO_IMPORT_PATH,
        files={"helpers/add.go": "package helpers\n\nfunc Add(a, b int) int { return a + b }\n"},
    ),
    go(
        "check: postgres",
        _main(
            '\tc, err := net.Dial("tcp", "localhost:5432")\n\tif err != nil {\n\t\tlog.Fatalf("connect:'
            ' %v", err)\n\t}\n\tc.Close()',
            "log",
            "net",
        ),
        Cause.LOCAL_SERVICE,
    ),
    go("check: os.Args", _main("\tfmt.Println(os.Args[1])", "fmt", "os"), Cause.NO_ARGUMENTS),
    go(
        "check: exec",
        _main(
            '\tout, err := exec.Command("git", "status").Output()\n\tif err != nil {\n\t\tlog.Fatal(err)\n'
            "\t}\n\tlog.Print(out)",
            "log",
            "os/exec",
        ),
        Cause.COMMAND_MISSING,
    ),
    go(
        "check: a nil pointer",
        _main("\ttype user struct{ name string }\n\tvar u *user\n\tfmt.Println(u.name)", "fmt"),
        None,
    ),
    go(
        "check: a wrapped error",
        _main('\tpanic(fmt.Errorf("load: %w", errors.New("no such user")))', "errors", "fmt"),
        None,
    ),
)
