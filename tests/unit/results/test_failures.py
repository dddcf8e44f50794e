"""What is wrong with a service, told apart by what its client raises."""

from __future__ import annotations

import json
import socket
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest
from botocore import exceptions as botocore
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from redis import exceptions as redis
from redis.crc import key_slot

from nanoagent.aws import failures as aws_failures
from nanoagent.aws.failures import FailureKind as AwsFailureKind
from nanoagent.model.errors import BrokerError, UnreadableMessage
from nanoagent.model.message import parse_job
from nanoagent.results import failures, scripts
from support.doubles.fakes import make_settings

if TYPE_CHECKING:
    from nanoagent.results.failures import FailureKind


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__context__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "says", "reconnect"),
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
        (redis.ClusterDownError("Hash slot not served"), "Redis Cluster", True),
        (redis.ClusterCrossSlotError("Keys in request don't hash to the same slot"), "Redis Cluster", True),
        (redis.MovedError("3999 127.0.0.1:6381"), "Redis Cluster", True),
        (redis.AskError("3999 127.0.0.1:6381"), "Redis Cluster", True),
        (redis.TryAgainError("Multiple keys request during rehashing of slot"), "Redis Cluster", True),
        (redis.ResponseError("SELECT is not allowed in cluster mode"), "Redis Cluster", True),
        (redis.ResponseError("DB index is out of range"), "set REDIS_DB", False),
        (redis.ResponseError("invalid DB index"), "set REDIS_DB", False),
        (redis.ResponseError("unknown command 'EVALSHA', with args beginning with: "), "run scripts", True),
        (redis.ResponseError("unknown command `eval`, with args beginning with: "), "run scripts", True),
        (redis.ResponseError("unknown command 'SETEX'"), "does not know a command", True),
        (
            redis.ResponseError("Write commands not allowed after non deterministic commands."),
            "too old: use Redis 5",
            True,
        ),
        (
            redis.ResponseError(
                "ACL failure in script: User u has no permissions to run the 'publish' command"
            ),
            "ACL rule",
            False,
        ),
        (
            redis.ResponseError("The user executing the script can't run this command or subcommand"),
            "ACL rule",
            False,
        ),
        (
            redis.AuthenticationError(
                "AUTH <password> called without any password configured for the default user."
            ),
            "unset REDIS_PASSWORD",
            True,
        ),
        (redis.ResponseError("DENIED Redis is running in protected mode because"), "protected mode", False),
        (redis.NoPermissionError("this user has no permissions"), "ACL rule", False),
        (redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"), "maxmemory", False),
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "save to its disk", False),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), "too few replicas", False),
        (redis.ResponseError("BUSY Redis is busy running a script."), "busy with a script", False),
        (redis.ConnectionError("max number of clients reached"), "maxclients", False),
        (
            caused(redis.ConnectionError("Error 111"), ConnectionRefusedError(111, "refused")),
            "refuses connections",
            False,
        ),
        (
            caused(redis.ConnectionError("Error -2"), socket.gaierror(-2, "Name or service not known")),
            "cannot be resolved",
            False,
        ),
        (redis.TimeoutError("Timeout connecting to server"), "did not answer in time", False),
        (TimeoutError(), "did not answer in time", False),
        (redis.InvalidResponse("Protocol Error: b'x'"), "garbled", False),
        (ValueError("invalid literal for int()"), "garbled", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_is_wrong_with_redis_is_said_with_what_to_do(error: Exception, says: str, *, reconnect: bool):
    kind = failures.kind_of(error)
    assert kind is not None
    assert says in kind.message
    assert kind.reconnect is reconnect
    assert failures.describe(error).startswith(kind.message)


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] words (_ssl.c:1)")
    error.reason = reason
    return error


def unverified(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (unverified(18), failures.UNKNOWN_ISSUER),
        (unverified(19), failures.UNKNOWN_ISSUER),
        (unverified(20), failures.UNKNOWN_ISSUER),
        (unverified(9), failures.EXPIRED),
        (unverified(10), failures.EXPIRED),
        (unverified(62), failures.OTHER_NAME),
        (unverified(64), failures.OTHER_NAME),
        (unverified(23), failures.BAD_CERTIFICATE),
        (tls_error("WRONG_VERSION_NUMBER"), failures.TLS_NOT_EXPECTED),
        (tls_error("RECORD_LAYER_FAILURE"), failures.TLS_NOT_EXPECTED),
        (tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), failures.CLIENT_CERTIFICATE_REQUIRED),
        (tls_error("TLSV1_ALERT_UNKNOWN_CA"), failures.CLIENT_CERTIFICATE_REFUSED),
        (tls_error("SSLV3_ALERT_CERTIFICATE_EXPIRED"), failures.CLIENT_CERTIFICATE_REFUSED),
        (tls_error("TLSV1_ALERT_PROTOCOL_VERSION"), failures.NO_COMMON_TLS),
        (tls_error("SOMETHING_NEW"), failures.TLS_FAILED),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), None),
    ],
    ids=str,
)
def test_what_is_wrong_with_tls_is_never_taken_for_nonsense(error: ssl.SSLError, kind: FailureKind | None):
    assert failures.kind_of(error) is kind
    assert failures.kind_of(caused(redis.ConnectionError("Error 1 connecting"), error)) is kind


def test_the_probes_keys_lie_in_several_slots_and_are_no_requests():
    assert len({key_slot(key.encode()) for key in scripts.PROBE_KEYS}) == len(scripts.PROBE_KEYS)
    with pytest.raises(UnreadableMessage):
        parse_job(json.dumps({"requestId": "~probe", "s3Key": "k"}), make_settings().job_defaults)


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
    assert failures.kind_of(error) is None
    assert failures.describe(error) == str(error)


def refusal(code: str, status: int = 400, message: str = "m") -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}},
        "Operation",
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refusal("SlowDown", 503), AwsFailureKind.THROTTLED),
        (refusal("ThrottlingException"), AwsFailureKind.THROTTLED),
        (refusal("OverLimit", 403), AwsFailureKind.THROTTLED),
        (refusal("ExpiredToken"), AwsFailureKind.REFUSED),
        (refusal("InvalidAccessKeyId", 403), AwsFailureKind.REFUSED),
        (refusal("InvalidClientTokenId", 403), AwsFailureKind.REFUSED),
        (refusal("SignatureDoesNotMatch", 403), AwsFailureKind.REFUSED),
        (botocore.NoCredentialsError(), AwsFailureKind.NO_CREDENTIALS),
        (
            botocore.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"),
            AwsFailureKind.NO_CREDENTIALS,
        ),
        (botocore.UnauthorizedSSOTokenError(), AwsFailureKind.REFUSED),
        (refusal("RequestTimeTooSkewed", 403), AwsFailureKind.CLOCK),
        (refusal("InvalidSignatureException", 403, "Signature expired: 1Z"), AwsFailureKind.CLOCK),
        (refusal("SignatureDoesNotMatch", 403, "Signature not yet current: 1Z"), AwsFailureKind.CLOCK),
        (refusal("AccessDenied", 403), AwsFailureKind.DENIED),
        (refusal("AWS.SimpleQueueService.NonExistentQueue"), AwsFailureKind.NO_QUEUE),
        (refusal("QueueDoesNotExist"), AwsFailureKind.NO_QUEUE),
        (refusal("InternalError", 500), AwsFailureKind.FAILING),
        (refusal("503", 503), AwsFailureKind.FAILING),
        (refusal("WhatEver", 502), AwsFailureKind.FAILING),
        (ResponseParserError("Unable to parse response"), AwsFailureKind.FAILING),
        (botocore.EndpointConnectionError(endpoint_url="x"), AwsFailureKind.UNREACHABLE),
        (botocore.ReadTimeoutError(endpoint_url="x"), AwsFailureKind.UNREACHABLE),
        (botocore.ConnectionClosedError(endpoint_url="x"), AwsFailureKind.UNREACHABLE),
        (aiohttp.ClientPayloadError("x"), AwsFailureKind.UNREACHABLE),
        (TimeoutError(), AwsFailureKind.UNREACHABLE),
        (ConnectionResetError(), AwsFailureKind.UNREACHABLE),
        (OSError(101, "Network is unreachable"), AwsFailureKind.UNREACHABLE),
        (refusal("NoSuchKey", 404), None),
        (refusal("NoSuchBucket", 404), AwsFailureKind.NO_BUCKET),
        (refusal("PermanentRedirect", 301), None),
        (refusal("ReceiptHandleIsInvalid"), None),
        (OSError(28, "No space left on device"), None),
        (FileNotFoundError(2, "No such file or directory"), None),
        (None, None),
    ],
    ids=lambda value: aws_failures.error_code(value) if isinstance(value, Exception) else "",
)
def test_what_is_wrong_with_an_aws_service_is_told_from_what_is_wrong_with_the_question(
    error: Exception | None, kind: AwsFailureKind | None
):
    assert aws_failures.failure_kind(error) is kind


def test_a_failed_call_says_what_to_do():
    with (
        pytest.raises(BrokerError, match=r"receive: .*\(ExpiredToken\).*refuses these credentials"),
        aws_failures.errors_as(BrokerError, "receive"),
    ):
        raise refusal("ExpiredToken")


def test_missing_credentials_are_not_called_refused():
    said = aws_failures.describe(botocore.NoCredentialsError())
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the instance a role" in said
    assert "refuses" not in said


def test_an_answer_that_cannot_be_read_is_the_services_failure_and_no_bug_of_ours():
    with (
        pytest.raises(BrokerError, match="the service fails"),
        aws_failures.errors_as(BrokerError, "receive"),
    ):
        raise ResponseParserError("Unable to parse response")
