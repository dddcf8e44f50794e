from pathlib import Path

import pytest

from nanoagent.common import gateway_address

CLIENTS = Path(__file__).parents[3] / "src/nanosupervisor"


@pytest.mark.parametrize("client", ["ai_client.py", "ai_client.js", "ai_client.go", "ai_client.hpp"])
def test_the_clients_in_containers_have_the_same_address(client: str):
    assert gateway_address.URL == "http://127.0.0.1:11434"
    assert f'{gateway_address.URL}"' in (CLIENTS / client).read_text().replace("'", '"')
