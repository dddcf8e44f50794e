"""Programs in JavaScript that were used to write the rules."""

from __future__ import annotations

from typing import Final

from nanoagent.model.cause import Cause
from nanoagent.model.job import Runtime
from support.catalogue import libraries
from support.catalogue.program import Program, nodejs

_MODULE: Final = '{"type": "module"}'

PROGRAMS: Final[tuple[Program, ...]] = (
    # --- packages and files
    nodejs("axios", "const axios = require('axios');\nconsole.log(axios);\n", Cause.MODULE_MISSING),
    nodejs(
        "package.json without node_modules",
        "const express = require('express');\nconst app = express();\n",
        Cause.NOT_VENDORED,
        files={"package.json": '{"name": "f", "dependencies": {"express": "^4.19.2"}}'},
    ),
    nodejs(
        "an import of a package",
        "import _ from 'lodash';\nconsole.log(_.chunk([1, 2], 1));\n",
        Cause.MODULE_MISSING,
        files={"package.json": _MODULE},
    ),
    nodejs("a missing file", "const db = require('./lib/db');\nconsole.log(db);\n", Cause.FILE_NOT_IN_ZIP),
    nodejs(
        "a file with a capital letter",
        "const helper = require('./helper');\nconsole.log(helper);\n",
        Cause.FILE_NAME_CASE,
        files={"Helper.js": "module.exports = 1;\n"},
    ),
    nodejs(
        "npm at run time",
        "const { execSync } = require('child_process');\nexecSync('npm install left-pad', { stdio:"
        " 'inherit' });\n",
        Cause.RUNTIME_INSTALL,
    ),
    nodejs(
        "a command",
        "const { spawn } = require('child_process');\nspawn('convert', ['a.png', 'b.jpg']);\n",
        Cause.COMMAND_MISSING,
    ),
    # --- native code
    nodejs(
        "an addon for ARM",
        "const addon = require('./build/Release/addon.node');\naddon.run();\n",
        Cause.NATIVE_ARCHITECTURE,
        files={"build/Release/addon.node": libraries.elf(libraries.ARM64)},
    ),
    nodejs(
        "an addon for macOS",
        "const addon = require('bcrypt');\nconsole.log(addon);\n",
        Cause.NATIVE_OPERATING_SYSTEM,
        files={
            "node_modules/bcrypt/package.json": '{"name": "bcrypt", "main": "bcrypt.js"}',
            "node_modules/bcrypt/bcrypt.js": "module.exports = require('./lib/bcrypt_lib.node');\n",
            "node_modules/bcrypt/lib/bcrypt_lib.node": libraries.MACH_O,
        },
    ),
    # --- entry
    nodejs(
        "a handler",
        "exports.handler = async (event) => {\n  return { statusCode: 200 };\n};\n",
        Cause.NEVER_CALLED,
    ),
    Program("app.js", Runtime.NODEJS, {"app.js": "console.log(1)\n", "package.json": "{}"}, Cause.ENTRY_NAME),
    Program(
        "TypeScript",
        Runtime.NODEJS,
        {"index.ts": "console.log(1)\n", "tsconfig.json": "{}"},
        Cause.ENTRY_TYPESCRIPT,
    ),
    Program("Python code", Runtime.NODEJS, {"main.py": "print(1)\n"}, Cause.OTHER_RUNTIME),
    # --- modules
    # Without a package.json, Node.js 20.19 recognises ES modules by their syntax. `npm init` writes the type.
    nodejs(
        "import",
        "import fs from 'fs';\nconsole.log(fs.readdirSync('.'));\n",
        Cause.ESM_IN_COMMONJS,
        files={"package.json": '{"name": "f", "type": "commonjs"}'},
    ),
    nodejs(
        "export",
        "const run = require('./run');\nrun();\n",
        Cause.ESM_IN_COMMONJS,
        files={
            "run.js": "const run = () => 1;\nexport default run;\n",
            "package.json": '{"name": "f", "type": "commonjs"}',
        },
    ),
    nodejs(
        "require in a module",
        "const fs = require('fs');\nconsole.log(fs);\n",
        Cause.COMMONJS_IN_ESM,
        files={"package.json": _MODULE},
    ),
    nodejs(
        "__dirname in a module",
        "import fs from 'fs';\nconsole.log(fs.readdirSync(__dirname));\n",
        Cause.COMMONJS_IN_ESM,
        files={"package.json": _MODULE},
    ),
    nodejs(
        "require of a module",
        "const chalk = require('chalk');\nconsole.log(chalk);\n",
        Cause.REQUIRE_OF_ESM,
        files={
            "node_modules/chalk/package.json": '{"name": "chalk", "type": "module", "exports": "./index.js"}',
            "node_modules/chalk/index.js": "await null;\nexport default 1;\n",
        },
    ),
    nodejs(
        "an import without extension",
        "import { add } from './math';\nconsole.log(add(1, 2));\n",
        Cause.ESM_EXTENSION,
        files={"package.json": _MODULE, "math.js": "export const add = (a, b) => a + b;\n"},
    ),
    nodejs(
        "await at the top",
        "const fs = require('fs').promises;\nconst text = await fs.readFile('a.txt');\n",
        Cause.TOP_LEVEL_AWAIT,
    ),
    nodejs(
        "the DOM", "const el = document.getElementById('app');\nel.textContent = 'x';\n", Cause.BROWSER_API
    ),
    # --- network
    nodejs(
        "fetch",
        "fetch('https://api.github.com/users/x').then(r => r.json()).then(console.log);\n",
        Cause.NO_NETWORK,
    ),
    nodejs(
        "postgres on localhost",
        "const net = require('net');\nconst c = net.connect(5432, '127.0.0.1');\nc.on('connect', () =>"
        " c.end());\n",
        Cause.LOCAL_SERVICE,
    ),
    nodejs(
        "a web server",
        "require('http').createServer((q, s) => s.end('ok')).listen(3000, () => console.log('listening'));\n",
        Cause.SERVER,
        timeout_ms=1500,
    ),
    # --- input
    nodejs(
        "stdin twice",
        "const fs = require('fs');\nconst raw = fs.readFileSync(0, 'utf8');\n"
        "const event = JSON.parse(fs.readFileSync(0, 'utf8'));\nconsole.log(event, raw);\n",
        Cause.STDIN_CONSUMED,
    ),
    # --- files, processes, memory
    nodejs("a read-only path", "require('fs').writeFileSync('/usr/out.json', '{}');\n", Cause.READ_ONLY_PATH),
    nodejs(
        "a path of another container",
        "require('fs').writeFileSync('/app/out.json', '{}');\n",
        Cause.LOCAL_PATH,
    ),
    nodejs(
        "too many files",
        "const fs = require('fs');\nwhile (true) fs.openSync('/dev/null', 'r');\n",
        Cause.OPEN_FILES,
    ),
    nodejs("recursion", "const walk = (n) => walk(n + 1) + 1;\nwalk(0);\n", Cause.RECURSION),
    nodejs(
        "a large array",
        "const rows = [];\nwhile (true) rows.push(new Array(200000).fill(rows.length));\n",
        Cause.V8_HEAP,
        memory_mb=512,
        timeout_ms=20_000,
    ),
    # --- time
    nodejs(
        "a timer that stays",
        "setInterval(() => {}, 1000);\nconsole.log('done');\n",
        Cause.WAITING,
        timeout_ms=1500,
    ),
    nodejs("a loop", "console.log('x');\nwhile (true) {}\n", Cause.COMPUTING, timeout_ms=1500),
    # --- text
    nodejs(
        "a time zone",
        "console.log(new Date().toLocaleString('ko', { timeZone: 'Asia/Seul' }));\n",
        Cause.TIME_ZONE,
    ),
    nodejs(
        "a byte order mark",
        "const fs = require('fs');\nconst c = JSON.parse(fs.readFileSync('config.json', 'utf8'));\n"
        "console.log(c);\n",
        Cause.BYTE_ORDER_MARK,
        files={"config.json": b"\xef\xbb\xbf{}"},
    ),
    # --- no hint
    nodejs("undefined", "const event = {};\nconsole.log(event.user.name);\n", None),
    nodejs("throw", "throw new Error('quota exceeded');\n", None),
    nodejs("exit 3", "console.error('bad input');\nprocess.exit(3);\n", None),
    nodejs("a rejection", "Promise.reject(new TypeError('not a number'));\n", None),
    nodejs("a name", "console.log(total);\n", None),
)
