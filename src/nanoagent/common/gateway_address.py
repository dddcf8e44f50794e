"""The address at which the gateway to model servers listens in a run's network.

The settings reserve its port, `network.listeners` listens on it, and `runner` tells it to programs. The
clients in `src/nanosupervisor` have the same address as their default. They are programs of the container,
which cannot import this package.
"""

from __future__ import annotations

from typing import Final

HOST: Final = "127.0.0.1"
PORT: Final = 11434
"""Ollama's own port: clients of Ollama find the gateway without a setting."""

URL: Final = f"http://{HOST}:{PORT}"
