"""Asks a running worker for the state of its pool, and prints it: `nanoagent pool`."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from nanoagent.model.errors import NanoAgentError

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S: Final = 5.0
_DEFAULT_PORT: Final = "8000"
_ANY_ADDRESS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - not listened on
_HEADINGS: Final = (
    "runtime",
    "hot",
    "generic",
    "busy",
    "starting",
    "hot/warm/cold",
    "cold",
    "rebound",
    "recycled",
)
_LAST_HEADINGS: Final = ("retired", "runtime", "reason", "idle", "runs", "MiB")


class WorkerNotReached(NanoAgentError):  # noqa: N818 - the worker may just not run
    """The worker did not answer. The message has the remedy."""


def default_url(variables: Mapping[str, str]) -> str:
    """Return the URL of the status server of the worker on this machine.

    Args:
        variables: The environment, with METRICS_HOST and METRICS_PORT if they are set.
    """
    host = variables.get("METRICS_HOST", "")
    shown = _ANY_ADDRESS.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{variables.get('METRICS_PORT') or _DEFAULT_PORT}"


def fetch(url: str) -> dict[str, Any]:
    """Return the document of `/pool`.

    Args:
        url: The URL of the worker's status server.

    Raises:
        WorkerNotReached: No worker answers there, or it has no pool yet.
    """
    address = f"{url.rstrip('/')}/pool"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=_TIMEOUT_S) as answer:
            document = json.load(answer)
            if isinstance(document, dict) and "runtimes" in document:
                return document
            reason = "the answer is not the state of a pool"
    except urllib.error.URLError as exc:
        reason = str(exc.reason)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        reason = str(exc) or type(exc).__name__
    raise WorkerNotReached(
        f"no worker answers at {address} ({reason}); start one, or set --url: the log of the worker has the "
        "port (metrics and health)"
    )


def show(document: dict[str, Any]) -> None:
    """Print the state of a pool as tables."""
    console = Console()
    for line in _summary(document):
        console.print(line)
    table = Table(box=None)
    for position, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="left" if position == 0 else "right")
    for runtime, state in document["runtimes"].items():
        table.add_row(runtime, *_cells(state))
    console.print(table)
    last = [
        (retired["secondsAgo"], runtime, retired)
        for runtime, state in document["runtimes"].items()
        for retired in state["lastRetired"]
    ]
    if not last:
        return
    table = Table(box=None)
    for heading in _LAST_HEADINGS:
        table.add_column(heading, justify="left" if heading in {"runtime", "reason"} else "right")
    for seconds, runtime, retired in sorted(last, key=lambda one: one[0]):
        numbers = f"{retired['idleSeconds']:.0f} s", str(retired["runs"]), str(retired["memoryMb"])
        table.add_row(f"{seconds:.0f} s ago", runtime, retired["reason"], *numbers)
    console.print(table)


def _summary(document: dict[str, Any]) -> list[str]:
    memory, containers = document["memoryMb"], document["containers"]
    held = "unknown" if memory["held"] is None else f"{memory['held']:,.0f} MiB"
    wanted = f", {memory['wanted']:,} MiB waited for" if memory["wanted"] else ""
    changing = f"{containers['creating']} being created, {containers['removing']} being removed"
    return [
        f"memory: {memory['charged']:,} of {memory['limit']:,} MiB charged, {held} held{wanted}",
        f"containers: {containers['running']:,} of at most {containers['limit']:,}, {changing}",
    ]


def _cells(state: dict[str, Any]) -> list[str]:
    starts, share = state["starts"], state["coldShare"]
    return [
        str(state["hot"]),
        f"{state['generic']} of {state['genericWanted']}",
        str(state["busy"]),
        str(state["starting"]),
        " / ".join(f"{starts[kind]:,}" for kind in ("hot", "warm", "cold")),
        "" if share is None else f"{share:.1%}",
        str(state["rebound"]),
        str(state["recycled"]),
    ]
