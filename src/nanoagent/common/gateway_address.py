"""The address of the AI gateway in the network of a run.

The settings reserve the port, `network.listeners` listens on it, and `jobs.environment` sets the address in
the environment of programs. The client libraries in `src/nanosupervisor` have the same address as their
default. They run in containers, and cannot import this package.
"""

from __future__ import annotations

from typing import Final

HOST: Final = "127.0.0.1"
PORT: Final = 11434
"""The default port of Ollama: its clients find the gateway without a setting."""

URL: Final = f"http://{HOST}:{PORT}"
