"""Functions whose zip has an installed package, for tests of `reuse: "imports"`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from nanoagent.container.policy import Binding
    from nanoagent.supervisor.wire import ImportsState
    from support.sandboxes.containers import Bench, Ran

# Runs the Python code of its input after the imports.
RUN_INPUT: Final = "import sys\nimport package\nexec(compile(sys.stdin.read(), 'snippet', 'exec'))\n"


class Functions:
    """Functions whose zip has one installed package, `package`.

    Args:
        box: Runs them.
        folder: An empty folder for their code.
    """

    def __init__(self, box: Bench, folder: Path) -> None:
        self._box = box
        self._folder = folder
        self._count = 0

    def make(
        self,
        package: str = "",
        *,
        main: str = RUN_INPUT,
        files: dict[str, str] | None = None,
        memory_mb: int = 128,
    ) -> Binding:
        """Make a function.

        Args:
            package: The text of the package.
            main: The text of main.py.
            files: More files; those in folders belong to no package.
            memory_mb: The memory limit of its runs.
        """
        self._count += 1
        tree = self._folder / str(self._count)
        record = "package/__init__.py,,\npackage/part.py,,\n"
        texts = {
            "main.py": main,
            "package/__init__.py": package,
            "package/part.py": "",
            "package-1.dist-info/RECORD": record,
        }
        for name, text in (texts | (files or {})).items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return replace(self._box.binding(memory_mb, tree), reuses_imports=True)

    async def run(self, function: Binding, snippet: str = "", **changes: Any) -> tuple[Ran, ImportsState]:
        """Run a function; also return the state of its imports just before the run.

        Args:
            function: The function.
            snippet: The standard input.
            changes: Fields of `RunRequest`.
        """
        states: list[ImportsState] = []
        ran = await self._box.run_bound(function, snippet, on_ready=states.append, **changes)
        return ran, states[0]
