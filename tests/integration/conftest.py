from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nanoagent.aws.clients import AwsClients
    from nanoagent.dev.local_services import EmbeddedStack


@pytest.fixture
async def clients(stack: EmbeddedStack) -> AsyncIterator[AwsClients]:
    """AWS clients of the embedded stack, for one test."""
    async with stack.clients() as clients:
        yield clients
