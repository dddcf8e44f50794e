# ruff: noqa: E501, RUF001 - programs and compiler messages are not changed
"""Programs that fail in common ways, with the error line that the result should have.

`record_stderr.py` runs them in the images. The recorded standard error is in `tests/unit/languages/stderr`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from nanoagent.model.job import Runtime


@dataclass(frozen=True, slots=True)
class ErrorProgram:
    """One program.

    Attributes:
        name: The name of its recorded standard error.
        runtime: Its language.
        source: The entry file.
        message: The expected error line; None if no line should be recognised.
        files: Further files.
        environment: Further environment variables.
        flags: Flags of a plain compiler call that replaces the runtime's build.
        builds: False if the build must fail; then the compiler's output is recorded.
    """

    name: str
    runtime: Runtime
    source: str
    message: str | None
    files: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    builds: bool = True


def _python(name: str, message: str | None, source: str, **more: dict[str, str]) -> ErrorProgram:
    return ErrorProgram(name, Runtime.PYTHON, source, message, **more)  # type: ignore[arg-type]


def _node(name: str, message: str | None, source: str, **more: dict[str, str]) -> ErrorProgram:
    return ErrorProgram(name, Runtime.NODEJS, source, message, **more)  # type: ignore[arg-type]


def _go(
    name: str, message: str | None, body: str, imports: tuple[str, ...] = (), top: str = ""
) -> ErrorProgram:
    imported = "".join(f'import "{package}"\n' for package in imports)
    return ErrorProgram(
        name, Runtime.GO, f"package main\n\n{imported}\n{top}\nfunc main() {{\n{body}\n}}\n", message
    )


def _cpp(
    name: str, message: str | None, body: str, *, top: str = "", flags: tuple[str, ...] = ()
) -> ErrorProgram:
    headers = (
        "cassert",
        "cstdlib",
        "cstring",
        "iostream",
        "memory",
        "stdexcept",
        "string",
        "thread",
        "vector",
    )
    included = "".join(f"#include <{header}>\n" for header in headers)
    source = f"{included}{top}\nint main(int argc, char **argv) {{\n{body}\n}}\n"
    return ErrorProgram(name, Runtime.CPP, source, message, flags=flags)


def _build(
    name: str, runtime: Runtime, message: str, source: str, files: dict[str, str] | None = None
) -> ErrorProgram:
    return ErrorProgram(name, runtime, source, message, files=files or {}, builds=False)


PYTHON_PROGRAMS: Final = (
    _python("plain", "ValueError: no such thing", 'raise ValueError("no such thing")\n'),
    _python("no_message", "ValueError", "raise ValueError\n"),
    _python("empty_lines_in_message", "ValueError: first", 'raise ValueError("first\\n\\nthird")\n'),
    _python("multi_line_message", "ValueError: first", 'raise ValueError("first\\nsecond\\n  third")\n'),
    _python(
        "message_begins_with_a_line_break", "ValueError: second", 'raise ValueError("\\nsecond\\nthird")\n'
    ),
    _python(
        "chained_during_handling",
        "KeyError: 'outer'",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    {}['outer']\n",
    ),
    _python(
        "chained_direct_cause",
        "RuntimeError: outer",
        "def f():\n    try:\n        1 / 0\n    except ZeroDivisionError as exc:\n"
        '        raise RuntimeError("outer\\nmore") from exc\nf()\n',
    ),
    _python(
        "exception_group",
        "ExceptionGroup: several (2 sub-exceptions)",
        'raise ExceptionGroup("several", [ValueError("one"), TypeError("two\\nlines")])\n',
    ),
    _python(
        "nested_group",
        "ExceptionGroup: outer (2 sub-exceptions)",
        "def fail():\n    raise KeyError('inner')\n"
        "try:\n    fail()\nexcept KeyError as exc:\n    error = exc\n"
        'raise ExceptionGroup("outer", [ExceptionGroup("inner", [error]), ValueError("v")])\n',
    ),
    _python(
        "group_from_an_error",
        "ExceptionGroup: several (1 sub-exception)",
        'try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise ExceptionGroup("several", [ValueError("one")])\n',
    ),
    _python(
        "error_from_a_group",
        "RuntimeError: after",
        'try:\n    raise ExceptionGroup("several", [ValueError("one")])\n'
        'except ExceptionGroup:\n    raise RuntimeError("after")\n',
    ),
    _python(
        "task_group",
        "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)",
        "import asyncio\nasync def fail():\n    raise ValueError('in a task')\n"
        "async def main():\n    async with asyncio.TaskGroup() as group:\n        group.create_task(fail())\n"
        "asyncio.run(main())\n",
    ),
    _python("syntax_error", "SyntaxError: '(' was never closed", "import sys\nx = (1,\n     2\ny = 3\n"),
    _python("indentation_error", "IndentationError: unexpected indent", "x = 1\n  y = 2\n"),
    _python(
        "syntax_error_in_a_module",
        "SyntaxError: invalid syntax",
        "import other\n",
        files={"other.py": "def f(:\n    pass\n"},
    ),
    _python(
        "notes",
        "ValueError: with notes",
        "error = ValueError('with notes')\nerror.add_note('first note')\nerror.add_note('second\\nnote')\nraise error\n",
    ),
    _python("exit_text", "no configuration", 'import sys\nsys.exit("no configuration")\n'),
    _python("raise_system_exit", "no configuration", 'raise SystemExit("no configuration")\n'),
    _python(
        "exit_3_with_text",
        "error: no configuration",
        'import sys\nprint("reading", file=sys.stderr)\nprint("error: no configuration", file=sys.stderr)\nsys.exit(3)\n',
    ),
    _python("exit_3_silent", None, "import sys\nsys.exit(3)\n"),
    _python(
        "printed_traceback_then_exit_3",
        "ZeroDivisionError: division by zero",
        "import sys, traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.print_exc()\n    sys.exit(3)\n",
    ),
    _python(
        "logged_traceback_then_exit_text",
        "giving up",
        "import logging, sys\ndef work():\n    try:\n        1 / 0\n    except ZeroDivisionError:\n"
        '        logging.exception("failed")\nwork()\nsys.exit("giving up")\n',
    ),
    _python(
        "logged_traceback_then_exit_2",
        "giving up",
        "import logging, sys\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n"
        '    logging.exception("failed")\nprint("giving up", file=sys.stderr)\nsys.exit(2)\n',
    ),
    _python("keyboard_interrupt", "KeyboardInterrupt", "raise KeyboardInterrupt\n"),
    _python(
        "recursion_error",
        "RecursionError: maximum recursion depth exceeded",
        "def f(n):\n    return f(n + 1)\nf(0)\n",
    ),
    _python(
        "mutual_recursion",
        "RecursionError: maximum recursion depth exceeded",
        "def f(n):\n    return g(n + 1)\ndef g(n):\n    return f(n + 1)\nf(0)\n",
    ),
    _python(
        "thread_then_exit_text",
        "a thread failed",
        "import sys, threading\ndef work():\n    raise ValueError('in a thread')\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\nsys.exit('a thread failed')\n",
    ),
    _python(
        "thread_then_exit_1",
        "ValueError: in a thread",
        "import sys, threading\ndef work():\n    raise ValueError('in a thread')\n"
        "thread = threading.Thread(target=work)\nthread.start()\nthread.join()\nsys.exit(1)\n",
    ),
    _python(
        "faulthandler",
        "Fatal Python error: Segmentation fault",
        "import ctypes, faulthandler\nfaulthandler.enable()\nctypes.string_at(0)\n",
    ),
    _python(
        "abort_with_faulthandler",
        "Fatal Python error: Aborted",
        "import faulthandler, os\nfaulthandler.enable()\nos.abort()\n",
    ),
    _python(
        "faulthandler_timeout",
        "Timeout (0:00:00.100000)!",
        "import faulthandler, time\nfaulthandler.dump_traceback_later(0.1, exit=True)\ntime.sleep(60)\n",
    ),
    _python(
        "warnings_before",
        "ValueError: after warnings",
        "import warnings\nwarnings.warn('old', UserWarning)\nx = '\\d'\nraise ValueError('after warnings')\n",
    ),
    _python(
        "warnings_before_exit_3",
        "stopped",
        "import sys, warnings\nwarnings.warn('old', UserWarning)\nprint('stopped', file=sys.stderr)\nsys.exit(3)\n",
    ),
    _python(
        "coloured",
        "ValueError: in colours",
        "def f():\n    raise ValueError('in colours\\nmore')\nf()\n",
        environment={"FORCE_COLOR": "1"},
    ),
    _python(
        "coloured_group",
        "ExceptionGroup: several (1 sub-exception)",
        "raise ExceptionGroup('several', [ValueError('one')])\n",
        environment={"FORCE_COLOR": "1"},
    ),
    _python(
        "coloured_syntax_error",
        "SyntaxError: invalid syntax",
        "x = = 1\n",
        environment={"FORCE_COLOR": "1"},
    ),
    _python(
        "ignored_at_exit",
        "ValueError: the real one",
        "class Noisy:\n    def __del__(self):\n        raise TypeError('in a finalizer')\n"
        "noisy = Noisy()\nraise ValueError('the real one')\n",
    ),
    _python(
        "failing_excepthook",
        "ValueError: the original",
        "import sys\ndef hook(*_):\n    1 / 0\nsys.excepthook = hook\nraise ValueError('the original')\n",
    ),
    _python(
        "task_never_retrieved",
        "RuntimeError: the real one",
        "import asyncio\nasync def fail():\n    raise ValueError('in a task')\n"
        "async def main():\n    task = asyncio.create_task(fail())\n    await asyncio.sleep(0)\n    await asyncio.sleep(0)\n"
        "    del task\n    raise RuntimeError('the real one')\nasyncio.run(main())\n",
    ),
    _python(
        "process_pool",
        "ValueError: in a child",
        "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
        "def work():\n    raise ValueError('in a child\\nsecond')\n"
        "with ProcessPoolExecutor(1, mp_context=get_context('fork')) as pool:\n    pool.submit(work).result()\n",
    ),
    _python(
        "local_class",
        "f.<locals>.Broken: text",
        "def f():\n    class Broken(Exception):\n        pass\n    raise Broken('text')\nf()\n",
    ),
    _python("module_not_found", "ModuleNotFoundError: No module named 'pandas_'", "import pandas_\n"),
    _python("assertion", "AssertionError", "assert 1 == 2\n"),
    _python("missing_payload", "KeyError: 'PAYLOAD'", "import os\nos.environ['PAYLOAD']\n"),
    _python(
        "argparse",
        "main.py: error: the following arguments are required: name",
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('name')\nparser.parse_args()\n",
    ),
    _python(
        "multi_line_statement",
        "ZeroDivisionError: division by zero",
        "def f(\n    a,\n    b,\n):\n    return a / b\n\nf(\n    1,\n\n    0,\n)\n",
    ),
    _python(
        "unittest",
        "FAILED (failures=1)",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(1, 2)\nunittest.main()\n",
    ),
    _python(
        "control_characters",
        "ValueError: a\\x1b]0;title\\x07b c",
        "raise ValueError('a\\x1b]0;title\\x07b\\tc')\n",
    ),
)

NODE_PROGRAMS: Final = (
    _node("error", "Error: boom", 'throw new Error("boom");\n'),
    _node("multi_line_message", "Error: first", 'throw new Error("first\\nsecond\\n    third");\n'),
    _node("no_message", "Error", "throw new Error();\n"),
    _node(
        "type_error",
        "TypeError: Cannot read properties of undefined (reading 'x')",
        "function f(a) {\n  return a.b.x;\n}\nf({});\n",
    ),
    _node("reference_error", "ReferenceError: nope is not defined", "nope();\n"),
    _node(
        "custom_class",
        "PaymentError: no money",
        "class PaymentError extends Error {\n  constructor(m) { super(m); this.name = 'PaymentError'; this.code = 7; }\n}\n"
        "throw new PaymentError('no money');\n",
    ),
    _node(
        "custom_class_without_a_name",
        "PaymentError: no money",
        "class PaymentError extends Error {}\nthrow new PaymentError('no money');\n",
    ),
    _node("thrown_string", "just text", "throw 'just text\\nsecond';\n"),
    _node("message_begins_with_a_line_break", "Error: second", 'throw new Error("\\nsecond\\nthird");\n'),
    _node(
        "message_is_json",
        'ValidationError: [ { "code": "invalid_type", "path": [ "name" ] } ]',
        "class ValidationError extends Error {}\n"
        "throw new ValidationError(JSON.stringify([{ code: 'invalid_type', path: ['name'] }], null, 2));\n",
    ),
    _node(
        "caught_at_the_top",
        "Error: boom",
        "process.on('uncaughtException', (error) => {\n  console.error(error);\n  process.exit(2);\n});\n"
        "throw new Error('boom');\n",
    ),
    _node("thrown_number", "42", "throw 42;\n"),
    _node("thrown_object", "{ code: 3, text: 'x' }", "throw { code: 3, text: 'x' };\n"),
    _node("thrown_undefined", "undefined", "throw undefined;\n"),
    _node("thrown_null", "null", "throw null;\n"),
    _node(
        "rejected_error",
        "Error: rejected",
        "async function main() {\n  await null;\n  throw new Error('rejected\\nsecond');\n}\nmain();\n",
    ),
    _node(
        "rejected_text",
        "UnhandledPromiseRejection: This error originated either by throwing inside of an async function without "
        "a catch block, or by rejecting a promise which was not handled with .catch(). The promise rejected with "
        'the reason "just text".',
        "Promise.reject('just text');\n",
    ),
    _node(
        "rejected_object",
        "UnhandledPromiseRejection: This error originated either by throwing inside of an async function without "
        "a catch block, or by rejecting a promise which was not handled with .catch(). The promise rejected with "
        'the reason "#<Object>".',
        "Promise.reject({ code: 3 });\n",
    ),
    _node(
        "aggregate_error",
        "AggregateError: All promises were rejected",
        "Promise.any([Promise.reject(new Error('one')), Promise.reject(new TypeError('two'))]);\n",
    ),
    _node(
        "cause",
        "Error: outer",
        "try {\n  null.x;\n} catch (error) {\n  throw new Error('outer', { cause: error });\n}\n",
    ),
    _node("syntax_error", "SyntaxError: Unexpected token ';'", "const a = 1;\nlet b = ;\n"),
    _node(
        "syntax_error_in_a_module",
        "SyntaxError: Unexpected token '}'",
        "require('./other');\n",
        files={"other.js": "function f() {\n}\n}\n"},
    ),
    _node("module_not_found", "Error: Cannot find module './nope'", "require('./nope');\n"),
    _node(
        "package_not_found",
        "Error [ERR_MODULE_NOT_FOUND]: Cannot find package 'nope' imported from /work/index.mjs",
        "import('./index.mjs');\n",
        files={"index.mjs": "import 'nope';\n"},
    ),
    _node(
        "missing_export",
        "SyntaxError: The requested module 'node:fs' does not provide an export named 'nope'",
        "import('./index.mjs');\n",
        files={"index.mjs": "import { nope } from 'node:fs';\nnope();\n"},
    ),
    _node(
        "import_syntax",
        "Error: ENOENT: no such file or directory, open 'x'",
        "import fs from 'node:fs';\nfs.readFileSync('x');\n",
    ),
    _node(
        "thrown_large_object",
        "{ items: [ 'item 0000000000', …",
        "throw { items: Array.from({ length: 40 }, (_, i) => `item 0000000000${i}`), last: 1 };\n".replace(
            "${i}", ""
        ),
    ),
    _node(
        "bracketed_error",
        "RangeError: no stack",
        "const e = new RangeError('no stack');\ndelete e.stack;\nthrow e;\n",
    ),
    _node(
        "worker_thread",
        "Error: in a worker",
        "const { Worker } = require('worker_threads');\n"
        "new Worker(\"throw new Error('in a worker')\", { eval: true });\n",
    ),
    _node(
        "exit_3_after_text",
        "error: no configuration",
        "console.error('reading');\nconsole.error('error: no configuration');\nprocess.exit(3);\n",
    ),
    _node(
        "exit_3_after_an_error",
        "Error: boom",
        "console.error(new Error('boom'));\nprocess.exit(3);\n",
    ),
    _node(
        "exit_1_after_a_labelled_error",
        "failed: Error: boom",
        "console.error('failed:', new Error('boom', { cause: new TypeError('inner') }));\nprocess.exit(1);\n",
    ),
    _node(
        "exit_1_after_a_multi_line_error",
        "Error: boom",
        "const error = new Error('boom\\nsecond');\nerror.code = 'E';\nconsole.error(error);\nprocess.exit(1);\n",
    ),
    _node(
        "heap",
        "FATAL ERROR: …",
        "require('v8').setFlagsFromString('--max-old-space-size=20');\nconst kept = [];\n"
        "for (;;) kept.push(new Array(1000).fill(kept.length).map(String));\n",
    ),
    _node(
        "assert_equal",
        "AssertionError [ERR_ASSERTION]: Expected values to be strictly equal:",
        "require('assert').strictEqual(1, 2);\n",
    ),
    _node(
        "assert_message",
        "AssertionError [ERR_ASSERTION]: one is not two",
        "require('assert')(1 === 2, 'one is not two');\n",
    ),
    _node(
        "system_error",
        "Error: ENOENT: no such file or directory, open '/nope'",
        "require('fs').readFileSync('/nope');\n",
    ),
    _node(
        "error_event",
        "Error [ERR_UNHANDLED_ERROR]: Unhandled error. ('text')",
        "const { EventEmitter } = require('events');\nnew EventEmitter().emit('error', 'text');\n",
    ),
    _node(
        "spawn_error",
        "Error: spawn nope ENOENT",
        "require('child_process').spawn('nope');\n",
    ),
    _node(
        "range_error",
        "RangeError: Maximum call stack size exceeded",
        "function f() {\n  return f();\n}\nf();\n",
    ),
    _node("json", "SyntaxError: Unexpected end of JSON input", "JSON.parse('');\n"),
    _node(
        "json_undefined",
        'SyntaxError: "undefined" is not valid JSON',
        "JSON.parse(process.env.NOPE);\n",
    ),
    _node("minified", "Error: minified", f"var a='{'x' * 3000}';throw new Error('minified');\n"),
    _node(
        "warning_before",
        "Error: after a warning",
        "process.emitWarning('old');\nsetTimeout(() => { throw new Error('after a warning'); }, 20);\n",
    ),
    _node("exit_code_13", None, "require('fs');\nprocess.exitCode = 13;\n"),
    _node("abort", None, "process.abort();\n"),
    _node(
        "coloured_error",
        "Error: in colours",
        "console.error('\\x1b[31m' + new Error('in colours').stack + '\\x1b[39m');\nprocess.exit(1);\n",
    ),
)

GO_PROGRAMS: Final = (
    _go("panic_string", "panic: boom", 'panic("boom")'),
    _go("panic_multi_line", "panic: first", 'panic("first\\nsecond\\n\\nfourth")'),
    _go("panic_begins_with_a_line_break", "panic: second", 'panic("\\nsecond\\nthird")'),
    _go(
        "panic_stringer",
        "panic: said",
        "panic(T{1})",
        (),
        'type T struct{ A int }\nfunc (T) String() string { return "said" }',
    ),
    _go("panic_pointer", "panic: (*main.T) …", "panic(&T{1})", (), "type T struct{ A int }"),
    _go("panic_error", "panic: boom", 'panic(errors.New("boom"))', ("errors",)),
    _go(
        "panic_wrapped_error",
        "panic: outer: inner",
        'panic(fmt.Errorf("outer: %w", errors.New("inner\\nmore")))',
        ("errors", "fmt"),
    ),
    _go(
        "panic_custom_error",
        "panic: no money",
        "panic(PaymentError{3})",
        (),
        'type PaymentError struct{ Code int }\nfunc (e PaymentError) Error() string { return "no money" }\n',
    ),
    _go(
        "panic_struct",
        'panic: main.T{A:1, B:"x"}',
        'panic(fmt.Sprintf("%#v", T{1, "x"}))',
        ("fmt",),
        "type T struct { A int; B string }",
    ),
    _go("panic_value", "panic: main.Code(3)", "panic(Code(3))", (), "type Code int"),
    _go("panic_nil", "panic: panic called with nil argument", "panic(nil)"),
    _go(
        "panic_recovered",
        "panic: second",
        'defer func() { r := recover(); _ = r; panic("second") }()\npanic("first")',
    ),
    _go(
        "panic_again",
        "panic: boom",
        'defer func() { panic(recover()) }()\npanic("boom")',
    ),
    _go(
        "panic_in_defer",
        "panic: second",
        'defer func() { panic("second") }()\npanic("first\\nmore")',
    ),
    _go(
        "index",
        "panic: runtime error: index out of range [5] with length 3",
        "a := make([]int, 3)\ni := 5\na[i] = 1",
    ),
    _go(
        "nil_pointer",
        "panic: runtime error: invalid memory address or nil pointer dereference",
        "var p *struct{ X int }\np.X = 1",
    ),
    _go("divide", "panic: runtime error: integer divide by zero", "a, b := 1, 0\nprintln(a / b)"),
    _go("nil_map", "panic: assignment to entry in nil map", 'var m map[string]int\nm["a"] = 1'),
    _go(
        "conversion",
        "panic: interface conversion: interface {} is string, not int",
        'var x any = "s"\nprintln(x.(int))',
    ),
    _go("panic_in_goroutine", "panic: boom", 'go func() { panic("boom") }()\nselect {}'),
    _go("deadlock", "fatal error: all goroutines are asleep - deadlock!", "c := make(chan int)\n<-c"),
    _go(
        "goexit",
        "fatal error: no goroutines (main called runtime.Goexit) - deadlock!",
        "runtime.Goexit()",
        ("runtime",),
    ),
    _go(
        "map_writes",
        "fatal error: concurrent map writes",
        "m := map[int]int{}\nfor i := 0; i < 8; i++ {\n\tgo func() { for j := 0; ; j++ { m[j%8] = j } }()\n}\ntime.Sleep(time.Minute)",
        ("time",),
    ),
    _go("log_fatal", "no configuration", 'log.SetFlags(0)\nlog.Fatal("no configuration")', ("log",)),
    _go(
        "log_fatal_with_time",
        "2009/11/10 23:00:00 no configuration",
        'os.Stderr.WriteString("2009/11/10 23:00:00 reading\\n2009/11/10 23:00:00 no configuration\\n")\nos.Exit(1)',
        ("os",),
    ),
    _go("log_panic", "panic: no configuration", 'log.SetFlags(0)\nlog.Panic("no configuration")', ("log",)),
    _go(
        "exit_3_with_text",
        "error: no configuration",
        'fmt.Fprintln(os.Stderr, "error: no configuration")\nos.Exit(3)',
        ("fmt", "os"),
    ),
    _go("exit_3_silent", None, "os.Exit(3)", ("os",)),
    _go(
        "stack_overflow",
        "fatal error: stack overflow",
        "debug.SetMaxStack(1 << 20)\nprintln(f(1))",
        ("runtime/debug",),
        "func f(n int) int { return f(n+1) + 1 }",
    ),
    _go(
        "printed_stack_then_exit_1",
        "caught: boom",
        'defer func() {\n\tfmt.Fprintln(os.Stderr, "caught:", recover())\n\tdebug.PrintStack()\n\tos.Exit(1)\n}()\npanic("boom")',
        ("fmt", "os", "runtime/debug"),
    ),
    _go(
        "failed_child",
        "exit status 7",
        'log.SetFlags(0)\nlog.Fatal(exec.Command("sh", "-c", "exit 7").Run())',
        ("log", "os/exec"),
    ),
    _go(
        "flag",
        "flag provided but not defined: -nope",
        'os.Args = append(os.Args, "-nope")\nflag.Parse()',
        ("flag", "os"),
    ),
    _go("closed_channel", "panic: send on closed channel", "c := make(chan int)\nclose(c)\nc <- 1"),
    _go(
        "text_before",
        "panic: boom",
        'println("panic: not yet")\nprintln("fatal error: neither")\npanic("boom")',
    ),
    _go(
        "abort_signal",
        "SIGABRT: abort",
        "syscall.Kill(syscall.Getpid(), syscall.SIGABRT)\nselect {}",
        ("syscall",),
    ),
    _go(
        "quit_signal",
        "SIGQUIT: quit",
        "syscall.Kill(syscall.Getpid(), syscall.SIGQUIT)\nselect {}",
        ("syscall",),
    ),
)

CPP_PROGRAMS: Final = (
    _cpp(
        "throw_runtime_error",
        "terminate called after throwing an instance of 'std::runtime_error': no such thing",
        'throw std::runtime_error("no such thing\\nsecond");',
    ),
    _cpp("throw_int", "terminate called after throwing an instance of 'int'", "throw 42;"),
    _cpp(
        "throw_custom",
        "terminate called after throwing an instance of 'app::Broken': custom",
        "throw app::Broken();",
        top='namespace app { struct Broken : std::exception { const char *what() const noexcept override { return "custom"; } }; }\n',
    ),
    _cpp(
        "throw_in_thread",
        "terminate called after throwing an instance of 'std::logic_error': in a thread",
        'std::thread([] { throw std::logic_error("in a thread"); }).join();',
    ),
    _cpp(
        "vector_at",
        "terminate called after throwing an instance of 'std::out_of_range': "
        "vector::_M_range_check: __n (which is 5) >= this->size() (which is 3)",
        "std::vector<int> v(3);\nreturn v.at(4 + argc);",
    ),
    _cpp(
        "stoi",
        "terminate called after throwing an instance of 'std::invalid_argument': stoi",
        'return std::stoi("x");',
    ),
    _cpp("terminate", "terminate called without an active exception", "std::terminate();"),
    _cpp(
        "joinable_thread",
        "terminate called without an active exception",
        "std::thread t([] { for (;;) std::this_thread::sleep_for(std::chrono::hours(1)); });",
        top="#include <chrono>\n",
    ),
    _cpp(
        "bad_alloc",
        "terminate called after throwing an instance of 'std::bad_alloc': std::bad_alloc",
        "char *volatile p = new char[1ull << 60 << (argc - 1)];\nreturn p[1];",
    ),
    _cpp(
        "assert",
        "program: main.cpp:12: int main(int, char**): Assertion `argc == 5' failed.",
        "assert(argc == 5);",
    ),
    _cpp(
        "library_assertion",
        "/usr/include/c++/14/bits/stl_vector.h:1130: Assertion '__n < this->size()' failed.",
        "std::vector<int> v(3);\nreturn v[4 + argc];",
        flags=("-D_GLIBCXX_ASSERTIONS",),
    ),
    _cpp(
        "pure_virtual",
        "pure virtual method called",
        "D d;",
        top="struct B { B() { call(); } void call() { f(); } virtual void f() = 0; };\nstruct D : B { void f() override {} };\n",
        flags=("-O0",),
    ),
    _cpp("invalid_free", "free(): invalid pointer", "char *p = (char *)malloc(64);\nfree(p + 8 * argc);"),
    _cpp(
        "double_free",
        "free(): double free detected in tcache 2",
        "char *p = (char *)malloc(64 * argc);\nfree(p);\nfree(p);",
        flags=("-O0",),
    ),
    _cpp(
        "stack_smashing",
        "*** stack smashing detected ***: terminated",
        "smash(argc);",
        top="__attribute__((noinline)) void smash(int n) { char b[8]; volatile char *p = b; for (int i = 0; i < 64 * n; i++) p[i] = 1; }\n",
        flags=("-fstack-protector-all", "-O0"),
    ),
    _cpp(
        "fortify",
        "*** buffer overflow detected ***: terminated",
        'char b[8];\nstrcpy(b, argv[argc - 1]);\nstrcat(b, "long enough to overflow");\nputs(b);',
        flags=("-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
    ),
    _cpp(
        "address_sanitizer",
        "AddressSanitizer: heap-use-after-free on address…",
        "int *p = new int[argc];\ndelete[] p;\nreturn p[0];",
        flags=("-fsanitize=address", "-g"),
    ),
    _cpp(
        "leak_sanitizer",
        "LeakSanitizer: detected memory leaks",
        "auto p = new std::string[argc];\np = nullptr;",
        flags=("-fsanitize=address", "-g"),
    ),
    _cpp(
        "undefined_behaviour_sanitizer",
        "main.cpp:13:3: runtime error: signed integer overflow: 2147483647 + 1 cannot be represented in type 'int'",
        "int n = 2147483647;\nn += argc;\nreturn n;",
        flags=("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    ),
    _cpp(
        "exit_with_text",
        "error: no configuration",
        'std::cerr << "reading\\nerror: no configuration" << std::endl;\nstd::exit(3);',
    ),
    _cpp("return_3", None, "return 3;"),
    _cpp("segfault", None, "return *(volatile int *)(long)(argc - 1);"),
    _cpp(
        "segfault_after_text",
        None,
        'std::cerr << "reading" << std::endl;\nreturn *(volatile int *)(long)(argc - 1);',
    ),
    _cpp("abort", None, "std::abort();"),
)

_MAIN = "int main() { return 0; }\n"

BUILD_PROGRAMS: Final = (
    _build(
        "cpp_undeclared",
        Runtime.CPP,
        "main.cpp:4:10: error: ‘nope’ was not declared in this scope",
        "#include <vector>\n\nint main() {\n  return nope(1);\n}\n",
    ),
    _build(
        "cpp_missing_header",
        Runtime.CPP,
        "main.cpp:1:10: fatal error: nope.h: No such file or directory",
        '#include "nope.h"\nint main() {}\n',
    ),
    _build(
        "cpp_error_in_header",
        Runtime.CPP,
        "lib/other.h:1:16: error: expected ‘;’ at end of member declaration",
        '#include "lib/other.h"\nint main() { A a; return a.x }\n',
        {"lib/other.h": "struct A { int x }\n;\n"},
    ),
    _build(
        "cpp_warning_before",
        Runtime.CPP,
        "main.cpp:3:22: error: expected ‘;’ before ‘}’ token",
        "#warning careful\n#include <string>\nint main() { return 1 }\n",
    ),
    _build(
        "cpp_template",
        Runtime.CPP,
        "main.cpp:3:41: error: no matching function for call to ‘sort(std::__cxx11::list<int>::iterator, int)’",
        "#include <algorithm>\n#include <list>\nint main() { std::list<int> l; std::sort(l.begin(), 5); }\n",
    ),
    _build(
        "cpp_undefined_reference",
        Runtime.CPP,
        "main.cpp: undefined reference to `f()'",
        "void f();\nint main() { f(); }\n",
    ),
    _build("cpp_no_main", Runtime.CPP, "undefined reference to `main'", "int f() { return 0; }\n"),
    _build(
        "cpp_two_mains",
        Runtime.CPP,
        "other.cpp: multiple definition of `main'",
        _MAIN,
        {"other.cpp": _MAIN},
    ),
    _build(
        "cpp_undefined_in_second",
        Runtime.CPP,
        "other.cpp: undefined reference to `g()'",
        "void f();\nint main() { f(); }\n",
        {"other.cpp": "void g();\nvoid f() { g(); g(); }\n"},
    ),
    _build(
        "go_undefined",
        Runtime.GO,
        "./main.go:4:2: undefined: nope",
        "package main\n\nfunc main() {\n\tnope()\n}\n",
    ),
    _build(
        "go_unused_import",
        Runtime.GO,
        './main.go:3:8: "os" imported and not used',
        'package main\n\nimport "os"\n\nfunc main() {}\n',
    ),
    _build(
        "go_syntax",
        Runtime.GO,
        "./main.go:5:1: syntax error: unexpected }, expected expression",
        "package main\n\nfunc main() {\n\ty := 1 +\n}\n",
    ),
    _build(
        "go_type",
        Runtime.GO,
        './main.go:4:14: cannot use "x" (untyped string constant) as int value in variable declaration',
        'package main\n\nfunc main() {\n\tvar n int = "x"\n\t_ = n\n}\n',
    ),
    _build(
        "go_missing_std_package",
        Runtime.GO,
        "main.go:3:8: package nope is not in std (/usr/lib/go-1.24/src/nope)",
        'package main\n\nimport "nope"\n\nfunc main() { nope.F() }\n',
    ),
    _build(
        "go_missing_module",
        Runtime.GO,
        "main.go:3:8: cannot find module providing package github.com/nope/nope: module lookup disabled by GOPROXY=off",
        'package main\n\nimport "github.com/nope/nope"\n\nfunc main() { nope.F() }\n',
    ),
    _build(
        "go_missing_in_module",
        Runtime.GO,
        "main.go:3:8: cannot find module providing package github.com/nope/nope: module lookup disabled by GOPROXY=off",
        'package main\n\nimport "github.com/nope/nope"\n\nfunc main() { nope.F() }\n',
        {"go.mod": "module example.com/app\n\ngo 1.22\n"},
    ),
    _build(
        "go_required_module",
        Runtime.GO,
        "main.go:3:8: module lookup disabled by GOPROXY=off",
        'package main\n\nimport "github.com/nope/nope"\n\nfunc main() { nope.F() }\n',
        {"go.mod": "module example.com/app\n\ngo 1.22\n\nrequire github.com/nope/nope v1.0.0\n"},
    ),
    _build(
        "go_bad_mod",
        Runtime.GO,
        "go: errors parsing go.mod: go.mod:3: unknown directive: nope",
        "package main\n\nfunc main() {}\n",
        {"go.mod": "module example.com/app\n\nnope 1\n"},
    ),
    _build(
        "go_newer_language",
        Runtime.GO,
        "go: go.mod requires go >= 1.99 (running go 1.24.4; GOTOOLCHAIN=local)",
        "package main\n\nfunc main() {}\n",
        {"go.mod": "module example.com/app\n\ngo 1.99\n"},
    ),
    _build(
        "go_no_main",
        Runtime.GO,
        "runtime.main_main·f: function main is undeclared in the main package",
        "package main\n\nfunc other() {}\n",
    ),
    _build(
        "go_two_mains",
        Runtime.GO,
        "./other.go:3:6: main redeclared in this block",
        "package main\n\nfunc main() {}\n",
        {"other.go": "package main\n\nfunc main() {}\n"},
    ),
    _build(
        "go_two_packages",
        Runtime.GO,
        "found packages main (main.go) and other (other.go) in /work",
        "package main\n\nfunc main() {}\n",
        {"other.go": "package other\n"},
    ),
    _build(
        "go_cgo",
        Runtime.GO,
        "package function: build constraints exclude all Go files in /work",
        'package main\n\n// #include <stdio.h>\nimport "C"\n\nfunc main() { C.puts(nil) }\n',
    ),
)

PROGRAMS: Final = (*PYTHON_PROGRAMS, *NODE_PROGRAMS, *GO_PROGRAMS, *CPP_PROGRAMS, *BUILD_PROGRAMS)
