"""`python -m nanoagent.dev.stub_model_server` serves until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress

from nanoagent.dev.stub_model_server.server import StubModelServer


async def _serve(host: str, port: int, key: str | None) -> None:
    async with StubModelServer(host, port, key=key) as stub_model_server:
        print(stub_model_server.url, flush=True)  # noqa: T201 - the caller reads the address from this line
        await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted. The first line of standard output is the server's URL."""
    parser = argparse.ArgumentParser(
        prog="python -m nanoagent.dev.stub_model_server",
        description="A model server without a model. The first line of standard output is its URL.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=11434, help="port to listen on; 0: any free port")
    parser.add_argument("--key", help="bearer key that requests must have")
    given = parser.parse_args(arguments)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(given.host, given.port, given.key))
    return 0


raise SystemExit(main())
