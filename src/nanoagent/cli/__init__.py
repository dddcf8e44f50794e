"""The command line: `nanoagent run`, `check`, `send` and the other commands.

The modules `*_commands` have the commands: their options, and calls of the modules that do the work. Modules
that are slow to import are imported in the command that needs them, so that `nanoagent --help` is fast.

Exit codes: 0 success, 1 failure, 2 invalid arguments or settings, 130 Ctrl-C; some commands have more.
"""

from nanoagent.cli.run_command import main

__all__ = ["main"]
