"""What is wrong with a service, told apart by what its client raises."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from botocore import exceptions as botocore
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from redis import exceptions as redis

from nanoagent import aws
from nanoagent.aws import Trouble
from nanoagent.errors import BrokerError
from nanoagent.sink import troubles


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "says", "elsewhere"),
    [
        (redis.ReadOnlyError("You can't write against a read only replica."), "read-only replica", True),
        (
            redis.ResponseError("Error running script (call to f_1): @user_script:1: -READONLY You can't"),
            "read-only replica",
            True,
        ),
        (redis.MasterDownError("Link with MASTER is down"), "lost its primary", True),
        (redis.BusyLoadingError("Redis is loading the dataset in memory"), "loading its data", True),
        (redis.AuthenticationError("invalid username-password pair"), "REDIS_PASSWORD", True),
        (redis.ClusterDownError("Hash slot not served"), "cluster is down", True),
        (redis.NoPermissionError("this user has no permissions"), "ACL rule", False),
        (redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"), "maxmemory", False),
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "save to its disk", False),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), "fewer replicas", False),
        (redis.ResponseError("BUSY Redis is busy running a script."), "busy with a script", False),
        (redis.ConnectionError("max number of clients reached"), "maxclients", False),
        (
            caused(redis.ConnectionError("Error 111"), ConnectionRefusedError(111, "refused")),
            "refuses connections",
            False,
        ),
        (
            caused(redis.ConnectionError("Error -2"), socket.gaierror(-2, "Name or service not known")),
            "leads nowhere",
            False,
        ),
        (redis.TimeoutError("Timeout connecting to server"), "did not answer in time", False),
        (TimeoutError(), "did not answer in time", False),
        (redis.InvalidResponse("Protocol Error: b'x'"), "garbled", False),
        (ValueError("invalid literal for int()"), "garbled", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_wrong_with_redis_is_said_with_what_to_do(error: Exception, says: str, *, elsewhere: bool):
    trouble = troubles.of(error)
    assert trouble is not None
    assert says in trouble.says
    assert trouble.elsewhere is elsewhere
    assert troubles.sentence(error).startswith(trouble.says)


@pytest.mark.parametrize(
    "error",
    [
        redis.ResponseError("wrong kind of value"),
        redis.NoScriptError("No matching script."),
        redis.ResponseError("value is READONLYISH"),
        redis.ConnectionError("Connection closed by server."),
        ConnectionResetError("reset"),
    ],
)
def test_what_is_nothing_of_that_is_said_in_its_own_words(error: Exception):
    assert troubles.of(error) is None
    assert troubles.sentence(error) == str(error)


def refusal(code: str, status: int = 400) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Operation"
    )


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (refusal("SlowDown", 503), Trouble.THROTTLED),
        (refusal("ThrottlingException"), Trouble.THROTTLED),
        (refusal("OverLimit", 403), Trouble.THROTTLED),
        (refusal("ExpiredToken"), Trouble.REFUSED),
        (refusal("InvalidAccessKeyId", 403), Trouble.REFUSED),
        (refusal("InvalidClientTokenId", 403), Trouble.REFUSED),
        (refusal("SignatureDoesNotMatch", 403), Trouble.REFUSED),
        (botocore.NoCredentialsError(), Trouble.REFUSED),
        (refusal("RequestTimeTooSkewed", 403), Trouble.CLOCK),
        (refusal("AccessDenied", 403), Trouble.DENIED),
        (refusal("AWS.SimpleQueueService.NonExistentQueue"), Trouble.NO_QUEUE),
        (refusal("QueueDoesNotExist"), Trouble.NO_QUEUE),
        (refusal("InternalError", 500), Trouble.FAILING),
        (refusal("503", 503), Trouble.FAILING),
        (refusal("WhatEver", 502), Trouble.FAILING),
        (ResponseParserError("Unable to parse response"), Trouble.FAILING),
        (botocore.EndpointConnectionError(endpoint_url="x"), Trouble.UNREACHABLE),
        (botocore.ReadTimeoutError(endpoint_url="x"), Trouble.UNREACHABLE),
        (botocore.ConnectionClosedError(endpoint_url="x"), Trouble.UNREACHABLE),
        (aiohttp.ClientPayloadError("x"), Trouble.UNREACHABLE),
        (TimeoutError(), Trouble.UNREACHABLE),
        (ConnectionResetError(), Trouble.UNREACHABLE),
        (OSError(101, "Network is unreachable"), Trouble.UNREACHABLE),
        (refusal("NoSuchKey", 404), None),
        (refusal("NoSuchBucket", 404), Trouble.NO_BUCKET),
        (refusal("PermanentRedirect", 301), None),
        (refusal("ReceiptHandleIsInvalid"), None),
        (OSError(28, "No space left on device"), None),
        (FileNotFoundError(2, "No such file or directory"), None),
        (None, None),
    ],
    ids=lambda value: aws.error_code(value) if isinstance(value, Exception) else "",
)
def test_what_is_wrong_with_an_aws_service_is_told_from_what_is_wrong_with_the_question(
    error: Exception | None, trouble: Trouble | None
):
    assert aws.trouble_of(error) is trouble


def test_a_failed_call_says_what_to_do():
    with (
        pytest.raises(BrokerError, match=r"receive: .*\(ExpiredToken\).*refuses these credentials"),
        aws.translated(BrokerError, "receive"),
    ):
        raise refusal("ExpiredToken")


def test_an_answer_that_cannot_be_read_is_the_services_failure_and_no_bug_of_ours():
    with pytest.raises(BrokerError, match="the service fails"), aws.translated(BrokerError, "receive"):
        raise ResponseParserError("Unable to parse response")
