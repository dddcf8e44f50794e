"""The configuration of the AWS clients."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.useragent import UserAgentString

from nanoagent.aws.clients import AwsClients


@pytest.mark.parametrize(
    ("application", "named"),
    [(None, ""), ("", ""), ("my-app", " app/my-app "), ("a b\r\nc: d", " app/a-b--c--d ")],
)
async def test_the_user_agent_names_the_sdk_and_the_application(
    application: str | None, named: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AWS_SDK_UA_APP_ID", raising=False)
    if application is not None:
        monkeypatch.setenv("AWS_SDK_UA_APP_ID", application)
    async with AwsClients("ap-northeast-2", access_key_id="a", secret_access_key="b") as clients:
        client = await clients.sqs()
        sent: list[bytes] = []

        def refuse(request: Any, **_: Any) -> None:
            sent.append(request.headers["User-Agent"])
            raise ConnectionError

        def assemble(*_: Any) -> Any:
            raise AssertionError("assembled for a request")

        client.meta.events.register("before-send.sqs", refuse)
        monkeypatch.setattr(UserAgentString, "_build_sdk_metadata", assemble)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await client.receive_message(QueueUrl="https://sqs.ap-northeast-2.amazonaws.com/1/q")
    assert len(sent) == 2
    assert len(set(sent)) == 1
    name = sent[0].decode()
    assert name.startswith("aiobotocore/")
    assert name.count(" botocore/") == 1
    assert named in name
    assert ("app/" in name) is bool(named)
