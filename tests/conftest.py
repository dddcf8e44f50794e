from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nanoagent.local import EmbeddedStack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStack]:
    """The embedded services, one set for every process that runs tests.

    It starts without an event loop, so that tests may each have their own.
    """
    with EmbeddedStack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
