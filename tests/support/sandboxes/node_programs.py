"""Node.js programs with the same output by `node index.js` and by a standby process, and exceptions."""

# ruff: noqa: E501 - each program has its own line

from __future__ import annotations

from typing import Final

from support.sandboxes.node_identity import Program, program

_MODULE: Final = '{"type": "module"}'


def esm(code: str, **more: str) -> Program:
    """Return an ES module, made by its folder's package.json."""
    return program(
        code, more={"package.json": _MODULE, **{name.replace("__", "."): text for name, text in more.items()}}
    )


SAME: Final[dict[str, Program]] = {
    # --- output and exit
    "hello": program("console.log('hello')"),
    "empty": program(""),
    "both streams in order": program("for (let i = 0; i < 5; i++) { console.log(i); console.error(-i); }"),
    "a megabyte of output": program("process.stdout.write('0123456789abcde\\n'.repeat(65536)); console.log('end');"),
    "output in pieces before process.exit": program(
        "for (let i = 0; i < 500; i++) process.stdout.write(`${i} `.repeat(20)); process.exit(3);"
    ),
    "exit code by process.exit": program("process.exit(7); console.log('never')"),
    "exit code by process.exitCode": program("process.exitCode = 9; console.log('on')"),
    "exit code beyond a byte": program("process.exit(300)"),
    "exit code negative": program("process.exit(-1)"),
    "exit code that is none": program("process.exit('no')"),
    "exit handlers": program(
        "process.on('exit', (code) => { console.log('exit', code); process.exitCode = 4; });"
        "let again = 2; process.on('beforeExit', () => { console.log('beforeExit'); if (again--) setTimeout(() => {}, 1); });"
    ),
    "exit in an exit handler": program("process.on('exit', () => process.exit(5)); throw new Error('first')"),
    "reallyExit": program("console.log('a'); process.reallyExit(6)"),
    "death by its own SIGTERM": program("process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 5000)"),
    "death by its own SIGINT": program("process.kill(process.pid, 'SIGINT'); setTimeout(() => {}, 5000)"),
    "death by its own SIGKILL": program("process.kill(process.pid, 'SIGKILL')"),
    "signal handlers": program(
        "process.once('SIGTERM', (name, number) => { console.log(name, number); process.exit(1); });"
        "process.kill(process.pid, 'SIGTERM'); setTimeout(() => {}, 5000);"
    ),
    "SIGPIPE is ignored": program("process.kill(process.pid, 'SIGPIPE'); setTimeout(() => console.log('alive'), 20)"),
    # --- errors
    "uncaught error": program("\nfunction thrower() {\n  throw new RangeError('too far');\n}\nthrower();\n"),
    "uncaught error with properties": program("throw Object.assign(new Error('x'), { code: 'E', cause: new Error('why') })"),
    "uncaught error later": program("setTimeout(() => { null.property; }, 1)"),
    "uncaught error in a tick": program("process.nextTick(() => { throw new Error('tick'); })"),
    "uncaught string": program("throw 'just text'"),
    "uncaught null": program("throw null"),
    "uncaught object": program("throw { an: 'object' }"),
    "uncaughtException handler": program(
        "process.on('uncaughtException', (e, origin) => console.log(e.message, origin)); throw new Error('caught');"
    ),
    "uncaughtExceptionMonitor": program("process.on('uncaughtExceptionMonitor', (e) => console.log(e.stack)); throw new Error('m')"),
    "syntax error": program("console.log('never');\nlet a = ;\n"),
    "syntax error in a required file": program("require('./bad')", more={"bad.js": "function (\n"}),
    "unhandled rejection": program("Promise.reject(new TypeError('nobody cares'))"),
    "unhandled rejection of no error": program("Promise.reject({ reason: 1 })"),
    "unhandled rejection of undefined": program("(async () => { throw undefined; })()"),
    "unhandledRejection handler": program("process.on('unhandledRejection', (e) => console.log('un', e)); Promise.reject(1)"),
    "rejection handled late": program(
        "process.on('unhandledRejection', () => console.log('u')).on('rejectionHandled', () => console.log('h'));"
        "const p = Promise.reject(1); setTimeout(() => p.catch(() => {}), 5);"
    ),
    "async stack trace": program(
        "const wait = () => new Promise((go) => setTimeout(go, 1));"
        "async function inner() { await wait(); throw new Error('deep'); } async function outer() { await inner(); } outer();"
    ),
    "stack trace": program("console.log(new Error('here').stack); console.trace('trace')"),
    "whole stack trace": program("Error.stackTraceLimit = Infinity; console.log(new Error('all').stack)"),
    "call sites": program(
        "Error.prepareStackTrace = (e, sites) => sites.map((s) => [s.getFileName(), s.getFunctionName(), s.getTypeName(),"
        " s.getLineNumber(), s.isToplevel(), s.isNative()].join()); console.log(new Error().stack)"
    ),
    "stack overflow": program("function f() { f(); } try { f(); } catch (e) { console.log(e instanceof RangeError, e.message); }"),
    "missing module": program("require('./nothing')"),
    "missing package": program("require('nothing-of-that-name')"),
    "missing main": Program({"other.js": ""}),
    "an internal module": program("require('internal/options')"),
    "an internal binding": program("process.binding('mksnapshot')"),
    "out of heap": program(
        "require('v8').setFlagsFromString('--max-old-space-size=20'); const a = [];"
        "try { for (;;) a.push(new Array(1e9)); } catch (e) { console.log(e.message); }"
    ),
    "warnings": program("process.emitWarning('careful', { code: 'W1', detail: 'more' }); new Buffer(1); require('punycode')"),
    "clocks of a worker thread": program(
        "const { Worker, isMainThread, parentPort } = require('worker_threads');"
        "function between(low, value, high) { return low - 1000 <= value && value <= high + 1000 || [low, value, high]; }"
        "function look() { const age = () => Date.now() - performance.timeOrigin;"
        " return [between(age(), process.uptime() * 1000, age()), between(age(), performance.now(), age()),"
        "  between(age(), new Event('x').timeStamp, age()), between(0, performance.nodeTiming.nodeStart, 1000)]; }"
        "if (isMainThread) { const origin = performance.timeOrigin; console.log(look(), process.uptime.toString());"
        " new Worker(__filename).on('message', ([worker, its]) => console.log(worker, its - origin)); }"
        "else parentPort.postMessage([look(), performance.timeOrigin]);",
        idle_ms=2500,
    ),
    # --- modules
    "arguments and names": program(
        "console.log(process.argv, process.argv0, process.execArgv, process.execPath, process.title, __filename, __dirname)"
    ),
    "the command line": program("console.log(require('fs').readFileSync('/proc/self/cmdline', 'latin1').split('\\0'))"),
    "the main module": program(
        "console.log(require.main === module, module, require.main.paths, module.children, require.cache, this === exports,"
        " process.mainModule === module, module.parent, require.extensions, arguments.length)"
    ),
    "required files": program(
        "const b = require('./lib'); console.log(b, module.children.length, Object.keys(require.cache), require('./data').x);"
        "console.log(require.resolve('./lib'), require.resolve.paths('x'))",
        more={
            "lib/index.js": "exports.up = module.parent === require.main; exports.paths = module.paths; exports.id = module.id;",
            "data.json": '{"x": [1, 2]}',
        },
    ),
    "a package in node_modules": program(
        "console.log(require('pkg'), require('pkg/sub'), require('#own'))",
        more={
            "package.json": '{"name": "root", "imports": {"#own": "./own.js"}}',
            "own.js": "module.exports = 'own'",
            "node_modules/pkg/package.json": '{"exports": {".": "./main.js", "./sub": "./deep/sub.js"}}',
            "node_modules/pkg/main.js": "module.exports = __filename",
            "node_modules/pkg/deep/sub.js": "module.exports = __filename",
        },
    ),
    "circular requires": program(
        "console.log(require('./a'))",
        more={"a.js": "exports.a = 1; exports.b = require('./b');", "b.js": "exports.seen = require('./a').a; require('./a').none;"},
    ),
    "a package.json of a broken kind": program("console.log(1)", more={"package.json": "{"}),
    "dynamic import from CommonJS": program(
        "import('./m.mjs').then((m) => console.log(m, m.default())); import('fs').then((m) => console.log(m.default === require('fs')))",
        more={"m.mjs": "export default () => import.meta.url; export const x = 1;"},
    ),
    "failing dynamic import": program("import('./none.mjs').catch((e) => { console.log(e.code, e.message); throw e; })"),
    "new Function and eval": program("console.log(new Function('return this === globalThis')(), eval('new Error(1).stack'))"),
    "vm": program(
        "const vm = require('vm'); const c = vm.createContext({ a: 1 });"
        "console.log(vm.runInContext('a + Object.getOwnPropertyNames(globalThis).length', c));"
        "console.log(vm.runInNewContext('new Error(1).stack'), new vm.Script('this.x = 5').runInThisContext(), x)"
    ),
    "ES module": esm(
        "import fs from 'fs'; import { a } from './a.mjs'; import c from './c.cjs';"
        "console.log(import.meta.url, a, c, typeof require, this, fs.existsSync('/work'), process.argv)",
        a__mjs="export const a = 1;",
        c__cjs="module.exports = { main: require.main, name: __filename };",
    ),
    "top-level await": esm("const x = await new Promise((go) => setTimeout(() => go(5), 5)); console.log(x); export default x;"),
    "top-level await without an end": esm("await new Promise(() => {});"),
    "top-level await that fails": esm("await Promise.reject(new Error('tla'));"),
    "ES module that throws": esm("import './a.mjs';\nthrow new Error('esm');", a__mjs="console.log('first');"),
    "ES module with a syntax error": esm("import { none } from './a.mjs';", a__mjs="export const some = 1;"),
    "import.meta": esm("console.log(Object.keys(import.meta), import.meta.resolve('./x.js'), import.meta.filename, import.meta.dirname)"),
    "createRequire": esm(
        "import { createRequire, builtinModules, isBuiltin } from 'module'; const require = createRequire(import.meta.url);"
        "console.log(require('./c.cjs'), require.main, builtinModules.length, isBuiltin('internal/util'), isBuiltin('node:test'));",
        c__cjs="module.exports = module.paths;",
    ),
    "import attributes": esm("import d from './d.json' with { type: 'json' }; console.log(d);", d__json='{"k": 1}'),
    "module syntax in CommonJS": program("import fs from 'fs'; console.log(typeof fs)"),
    "customization hooks": program(
        "const m = require('module'); m.register('data:text/javascript,export function resolve(s,c,n){return n(s,c)}');"
        "import('./m.mjs').then((x) => console.log(x.default));",
        more={"m.mjs": "export default 'hooked'"},
    ),
    "patched loader": program(
        "const m = require('module'); const load = m._load; m._load = function (...a) { console.log('load', a[0]); return load.apply(this, a); };"
        "require('os'); console.log(Object.keys(m._pathCache), Object.keys(m._cache));"
    ),
    "source maps": program(
        "process.setSourceMapsEnabled(true); require('./gen')",
        more={
            "gen.js": "\n\nthrow new Error('mapped');\n//# sourceMappingURL=data:application/json,"
            '{"version":3,"sources":["orig.ts"],"names":[],"mappings":";;AAAA"}\n'
        },
    ),
    # --- arguments, environment and descriptors
    "environment": program("console.log(process.env, Object.keys(process.env))", environment={"B": "2", "A": "", "C": "a=b=c"}),
    "environment in Korean": program("console.log(process.env.PAYLOAD)", environment={"PAYLOAD": '{"이름": "나노"}'}),
    "environment of a child": program("console.log(require('child_process').execSync('env | sort').toString())"),
    "environment is text": program("process.env.N = 1; process.env.U = undefined; console.log(process.env.N, process.env.U, typeof process.env.N)"),
    "large payload": program("console.log(process.env.PAYLOAD.length, process.env.LAST)", environment={"PAYLOAD": "x" * 98000, "LAST": "y"}),
    "time zone": program(
        "console.log(String(new Date(0)), new Date(2020, 6, 1).getTimezoneOffset(), Intl.DateTimeFormat().resolvedOptions().timeZone)",
        environment={"TZ": "Asia/Seoul"},
    ),
    "no time zone": program("console.log(String(new Date(0))); process.env.TZ = 'America/New_York'; console.log(String(new Date(0)))"),
    "languages": program(
        "console.log(Intl.DateTimeFormat().resolvedOptions().locale, (1234.5).toLocaleString(), (1234.5).toLocaleString('de'),"
        " new Date(0).toLocaleString('ko-KR', { timeZone: 'UTC' }), ['ä', 'z', 'a'].sort(new Intl.Collator('sv').compare))"
    ),
    "folder": program("console.log(process.cwd()); process.chdir('/tmp'); console.log(process.cwd(), require('path').resolve('x'))"),
    "umask and ids": program("console.log(process.umask(), process.getuid(), process.getgid(), process.getgroups())"),
    "input at once": program("console.log(require('fs').readFileSync(0, 'utf8'), require('fs').readFileSync('/dev/stdin', 'utf8'))", payload="abc\n"),
    "input by events": program(
        "process.stdin.on('data', (d) => console.log('data', d)).on('end', () => console.log('end')).on('close', () => console.log('close'));"
        "console.log(process.stdin.isTTY, process.stdin.fd, process.stdin.constructor.name)",
        payload="x" * 100000,
    ),
    "input by lines": program("require('readline').createInterface({ input: process.stdin }).on('line', (l) => console.log('>', l))", payload="a\nb\nc"),
    "input by iteration": esm("for await (const d of process.stdin.setEncoding('utf8')) console.log(d); console.log('done')"),
    "input unread": program("process.stdin; console.log('no read')"),
    "streams": program(
        "for (const s of [process.stdout, process.stderr]) console.log(s.fd, s.isTTY, s.constructor.name, s._type, s.writableHighWaterMark,"
        " s.writableLength, s.columns, s._handle.constructor.name)"
    ),
    "kinds of descriptors": program(
        "const fs = require('fs'); console.log(fs.readdirSync('/proc/self/fd').map((n) => { try { return fs.readlinkSync(`/proc/self/fd/${n}`)"
        ".replace(/\\d+/g, ''); } catch { return '-'; } }).sort())"
    ),
    "active handles": program("console.log(process._getActiveHandles().length, process.getActiveResourcesInfo())"),
    "limits": program(
        "const v8 = require('v8'); console.log(v8.getHeapStatistics().heap_size_limit, process.constrainedMemory(),"
        "require('fs').readFileSync('/proc/self/limits', 'utf8'))"
    ),
    "signals and status": program(
        "console.log(require('fs').readFileSync('/proc/self/status', 'utf8').match(/^(Sig|Shd|Cap|NoNew|Seccomp|Uid|Gid|Groups).*/gm))"
    ),
    # --- globals and built-ins
    "globals": program(
        "const show = (o) => Reflect.ownKeys(o).map((k) => { const d = Object.getOwnPropertyDescriptor(o, k);"
        " return [String(k), typeof d.value, d.enumerable, d.configurable, d.writable, !!d.get, !!d.set].join(); }).sort();"
        "console.log(show(globalThis).join('\\n')); console.log(Object.keys(globalThis).join())"
    ),
    "the process object": program(
        "const show = (o) => Reflect.ownKeys(o).map((k) => { const d = Object.getOwnPropertyDescriptor(o, k);"
        " return [String(k), typeof d.value, d.enumerable, d.configurable, d.writable, !!d.get, !!d.set].join(); });"
        "console.log(show(process).join('\\n'), process.eventNames(), process.release, process.versions, process.features)"
    ),
    "the console": program("console.log(console, console.Console.name, new console.Console(process.stdout) instanceof console.Console)"),
    "loaded built-ins": program("console.log(process.moduleLoadList.join('\\n'))"),
    "every built-in module": program(
        "for (const name of require('module').builtinModules) console.log(name, Object.keys(require(name)).length)"
    ),
    "asynchronous ids": program(
        "const h = require('async_hooks'); console.log(h.executionAsyncId(), h.triggerAsyncId(), new h.AsyncResource('X').asyncId())"
    ),
    "asynchronous hooks": program(
        "const h = require('async_hooks'); const out = []; h.createHook({ init: (id, type, trigger) => out.push([id, type, trigger]) }).enable();"
        "setTimeout(() => {}, 1); Promise.resolve().then(() => {}); process.on('exit', () => require('fs').writeSync(1, JSON.stringify(out)))"
    ),
    "AsyncLocalStorage": program(
        "const { AsyncLocalStorage: A } = require('async_hooks'); const a = new A();"
        "a.run(1, () => setTimeout(() => console.log(a.getStore()), 1)); console.log(a.getStore())"
    ),
    "order of the loop": program(
        "setTimeout(() => console.log('timeout'), 0); setImmediate(() => console.log('immediate'));"
        "process.nextTick(() => console.log('tick')); Promise.resolve().then(() => console.log('promise')); queueMicrotask(() => console.log('micro'));"
        "require('fs').stat('/', () => console.log('stat')); const t = Date.now(); while (Date.now() - t < 20);"
    ),
    "timers": program(
        "const i = setInterval(() => { console.log('i'); clearInterval(i); }, 2); setTimeout(() => console.log('never'), 1e6).unref();"
        "const r = setTimeout(() => console.log('ref'), 10); console.log(r.hasRef(), i.hasRef())"
    ),
    "timers after a long wait": program("const t = Date.now(); setTimeout(() => console.log(Date.now() - t >= 149), 150)", idle_ms=400),
    "clocks after a long wait": program(
        "console.log(process.uptime() < 2.4, performance.now() < 2400, Math.abs(Date.now() - performance.timeOrigin - performance.now()) < 5,"
        " performance.nodeTiming.nodeStart >= 0, performance.nodeTiming.duration < 2400, performance.mark('m').startTime < 2400,"
        " performance.timerify(() => 1)(), process.uptime.name, process.uptime.length)",
        idle_ms=2500,
    ),
    "buffers and their pool": program("console.log(Buffer.from('a').byteOffset, Buffer.from('abc').byteOffset, Buffer.poolSize, Buffer.alloc(3))"),
    "crypto": program(
        "const c = require('crypto'); console.log(c.createHash('sha256').update('x').digest('hex'), crypto.subtle.constructor.name,"
        " c.randomBytes(4).length, c.getCiphers().length); crypto.subtle.digest('SHA-1', Buffer.from('x')).then((d) => console.log(d))"
    ),
    "compression": program("const z = require('zlib'); console.log(z.gunzipSync(z.gzipSync('text')).toString(), z.deflateSync('a').toString('hex'))"),
    "fetch without a network": program("fetch('http://127.0.0.1:9/').catch((e) => console.log(e.message, e.cause.code)); console.log(new Headers({ a: '1' }))"),
    "an HTTP server and client": program(
        "const http = require('http'); const s = http.createServer((q, r) => r.end('served ' + q.url)).listen(0, () => fetch("
        "`http://127.0.0.1:${s.address().port}/x`).then((r) => r.text()).then((t) => { console.log(t); s.close(); s.closeAllConnections(); }))"
    ),
    "files by promises": esm("import fs from 'fs/promises'; await fs.writeFile('/tmp/x', 'y'); console.log(await fs.readFile('/tmp/x', 'utf8'), await fs.readdir('.'))"),
    "structuredClone and channels": program(
        "console.log(structuredClone({ d: new Date(0), m: new Map([[1, 2]]) })); const { port1, port2 } = new MessageChannel();"
        "port2.onmessage = (e) => { console.log(e.data); port2.close(); }; port1.postMessage({ over: 1 });"
    ),
    "WebAssembly": program(
        "console.log(new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array([0,97,115,109,1,0,0,0,1,5,1,96,0,1,127,3,2,1,0,7,5,1,1,102,0,0,10,6,1,4,0,65,42,11])))"
        ".exports.f())"
    ),
    "wide use of the language": program(
        "class A { #x = 1; static s = 2; get x() { return this.#x; } } console.log(new A().x, A.s, [..._g()], 2n ** 70n, /(?<y>\\d+)/u.exec('a12').groups.y);"
        "function* _g() { yield* [1, 2]; } console.log([3, 1, 2].toSorted(), Object.groupBy, new WeakRef({}).constructor.name, Symbol.dispose)"
    ),
    "inspection": program("console.log(require('util').inspect({ a: new Map([[1, { b: [new Set([1])] }]]), f() {}, [Symbol('s')]: 1n }, { depth: 9 }))"),
    "the inspector is closed": program("const i = require('inspector'); console.log(i.url(), process.debugPort)"),
    "a module by scheme alone": program("console.log(Object.keys(require('node:test')))"),
    "startup snapshots": program("const s = require('v8').startupSnapshot; console.log(s.isBuildingSnapshot()); s.addSerializeCallback(() => {})"),
    # --- other threads and processes
    "worker threads": program(
        "const w = require('worker_threads'); if (w.isMainThread) { const t = new w.Worker(__filename, { workerData: 1 });"
        "t.on('message', (m) => console.log(m)).on('exit', (c) => console.log('exit', c)); } else w.parentPort.postMessage("
        "[w.workerData, process.argv, process.execArgv, process.env.HOME, require.main === module, Object.keys(globalThis).length]);"
    ),
    "worker threads of text": program(
        "new (require('worker_threads').Worker)('console.log(1); throw new Error(\"inner\")', { eval: true }).on('error', (e) => console.log(e.message))"
    ),
    "a worker of an ES module": esm("import { Worker, isMainThread } from 'worker_threads'; if (isMainThread) new Worker(new URL(import.meta.url)); else console.log('in', await 1)"),
    "fork": program(
        "const c = require('child_process'); if (process.send) { process.send([process.argv, process.execArgv, process.env.NODE_OPTIONS]); process.disconnect(); }"
        "else c.fork(__filename, ['arg']).on('message', (m) => console.log(m)).on('exit', (code) => console.log(code))"
    ),
    "spawn of node": program("console.log(require('child_process').execFileSync(process.execPath, [...process.execArgv, '-p', 'process.argv']).toString())"),
    "children inherit streams": program("console.log(require('child_process').spawnSync('sh', ['-c', 'cat; echo out; echo err >&2; exit 3'], { stdio: 'inherit' }).status)", payload="in\n"),
    "cluster": program(
        "const c = require('cluster'); if (c.isPrimary) c.fork().on('exit', (code) => console.log('worker', code)); else process.exit(2)"
    ),
    # --- programs that a standby process leaves to a new process
    "NODE_OPTIONS": program("console.log(process.noDeprecation, process.env.NODE_OPTIONS, process.execArgv)", environment={"NODE_OPTIONS": "--no-deprecation"}),
    "NODE_NO_WARNINGS": program("process.emitWarning('unseen')", environment={"NODE_NO_WARNINGS": "1"}),
    "another language": program("console.log(Intl.DateTimeFormat().resolvedOptions().locale)", environment={"LANG": "ko_KR.UTF-8", "LC_ALL": "ko_KR.UTF-8"}),
    "further arguments": program("console.log(process.argv)", arguments=("/usr/bin/node", "index.js", "a", "b c")),
    "options": program("console.log(process.execArgv)", arguments=("/usr/bin/node", "--stack-size=500", "index.js")),
    "another script": program("", more={"lib/other.js": "console.log(process.argv, require.main.filename)"}, arguments=("/usr/bin/node", "lib/other.js")),
    "another program": program("", payload="given", arguments=("/bin/sh", "-c", "cat; pwd; env | sort; ls /proc/self/fd | wc -l; kill -PIPE $$")),
}  # fmt: skip


DIFFERENT: Final[dict[str, str]] = {
    "Math.random": "console.log(Math.random())",
    "Math.random in another context": "console.log(require('vm').runInNewContext('Math.random()'))",
    "crypto.randomUUID": "console.log(require('crypto').randomUUID())",
    "crypto.randomUUID of the web": "console.log(crypto.randomUUID())",
    "crypto.randomBytes": "console.log(require('crypto').randomBytes(16).toString('hex'))",
    "crypto.getRandomValues": "console.log(crypto.getRandomValues(new Uint32Array(4)).join())",
    "crypto.randomInt": "console.log(require('crypto').randomInt(2 ** 47))",
    "generated keys": "console.log(require('crypto').generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' }).x)",
    "mkdtemp": "console.log(require('fs').mkdtempSync('/tmp/x'))",
    "hrtime": "console.log(process.hrtime.bigint())",
    "timeOrigin": "console.log(performance.timeOrigin)",
}
