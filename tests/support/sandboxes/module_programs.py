# ruff: noqa: E501 - programs as strings
"""Programs with modules. A program must do the same with byte code from the worker and without it."""

from __future__ import annotations

from typing import Final

from support.sandboxes.identity_programs import PROGRAMS

IDENTITY: Final[dict[str, dict[str, str | bytes]]] = {
    **{
        name: program
        for name, program in PROGRAMS.items()
        if isinstance(program, dict) and any(path.endswith(".py") and path != "main.py" for path in program)
    },
    "a_traceback": {
        "main.py": "import pack.one\ntry:\n    pack.one.f()\nfinally:\n    print(pack.one.f.__code__.co_filename)\n",
        "pack/__init__.py": "",
        "pack/one.py": "def f():\n    # a comment\n    raise ValueError(f'{f.__code__.co_firstlineno}')\n",
    },
    "attributes_and_source": {
        "main.py": "import inspect, linecache, pack.one as one\n"
        "print(one.__file__, one.__cached__, one.__spec__, one.__loader__.path, one.__doc__, one.__annotations__)\n"
        "print(inspect.getsource(one.f), inspect.getsourcefile(one), inspect.getsourcelines(one.A))\n"
        "def codes(code):\n"
        "    yield code\n"
        "    for each in code.co_consts:\n"
        "        if hasattr(each, 'co_code'):\n"
        "            yield from codes(each)\n"
        "whole = one.__loader__.get_code('pack.one')\n"
        "for code in codes(whole):\n"
        "    print(code.co_filename, code.co_qualname, code.co_firstlineno, list(code.co_positions()),\n"
        "          code.co_code.hex(), code.co_consts, code.co_exceptiontable.hex())\n",
        "pack/one.py": "'''A doc.'''\nx: int = 1\ndef f(a, *, b=2):\n    '''Doc of f.'''\n    return [a for _ in range(b)]\n"
        "class A:\n    def m(self):\n        assert self, 'kept'\n        return lambda: (1, 'two', 3.0, b'4', frozenset({5}))\n",
    },
    "a_warning_of_the_compiler": {
        "main.py": "import warns, fine\nprint(warns.x, fine.x)\n",
        "warns.py": "x = '\\d' is 1\n",
        "fine.py": "x = 1\n",
    },
    "an_error_of_the_compiler": {
        "main.py": "import fine\ntry:\n    import wrong\nexcept SyntaxError as exc:\n    print(exc.filename, exc.lineno)\nimport wrong\n",
        "wrong.py": "x = (\n",
        "fine.py": "x = 1\n",
    },
    "an_encoding": {
        "main.py": "import latin\nprint(ascii(latin.x))\n",
        "latin.py": "# coding: latin-1\nx = 'ä'\n".encode("latin-1"),
        "broken.py": b"x = '\xff'\n",
    },
    "another_path_to_a_module": {
        "main.py": "import sys\nsys.path.insert(0, '/work/../work/lib')\nimport one\nprint(one.__file__, one.f.__code__.co_filename)\n",
        "lib/one.py": "def f(): pass\n",
    },
    "rename_of_a_folder": {
        "main.py": "import os\nos.rename('a', 'b')\nimport b.one\nprint(b.one.__file__, b.one.f.__code__.co_filename)\n",
        "a/one.py": "def f(): pass\n",
    },
    "a_subprocess": {
        "main.py": "import subprocess, sys\n"
        "for options in ([], ['-O'], ['-OO'], ['-W', 'error'], ['-B'], ['-m']):\n"
        "    words = [*options, 'other' if options == ['-m'] else 'other.py']\n"
        "    print(subprocess.run([sys.executable, *words], capture_output=True, text=True))\n",
        "other.py": "import one\nassert one.f(), 'asserted'\nprint(one.f.__doc__, __debug__)\n",
        "one.py": "def f():\n    '''A doc.'''\n    return not __debug__\n",
    },
    "main_is_a_module_too": {
        "main.py": "import one\nif __name__ == '__main__':\n    one.show()\n",
        "one.py": "def show():\n    import main\n    print(main.__file__, main.__name__)\n",
    },
}
