"""A reverse proxy in front of the embedded AWS services: it records calls and enforces a policy.

The permission for a call does not always have the name of the call. A batch needs the permission of the
single call, and each part of a multipart upload needs that of PutObject. `ACTIONS` has the permissions. A
call that is not in `ACTIONS` fails its test.

Sources: "Actions, resources, and condition keys" of Amazon SQS, Amazon S3 and Amazon CloudWatch in AWS's
Service Authorization Reference; "Required permissions for Amazon S3 API operations" in the Amazon S3 User
Guide.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

_ENDPOINTS: Final = ("", "_SQS", "_S3", "_CLOUDWATCH", "_SSM", "_SECRETS_MANAGER")
_REGION: Final = "ap-northeast-2"
_ACCOUNT: Final = "123456789012"
ACTIONS: Final = {
    "ReceiveMessage": "sqs:ReceiveMessage",
    "DeleteMessageBatch": "sqs:DeleteMessage",
    "ChangeMessageVisibility": "sqs:ChangeMessageVisibility",
    "ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
    "GetQueueAttributes": "sqs:GetQueueAttributes",
    "GetQueueUrl": "sqs:GetQueueUrl",
    "SendMessage": "sqs:SendMessage",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "PutMetricData": "cloudwatch:PutMetricData",
    "GetParameter": "ssm:GetParameter",
    "GetSecretValue": "secretsmanager:GetSecretValue",
}
"""The permission that each operation needs."""

# S3's operations, by method and query parameters.
_S3: Final = {
    ("GET", frozenset[str]()): "GetObject",
    ("HEAD", frozenset[str]()): "HeadObject",
    ("PUT", frozenset[str]()): "PutObject",
    ("POST", frozenset({"uploads"})): "CreateMultipartUpload",
    ("PUT", frozenset({"uploadId", "partNumber"})): "UploadPart",
    ("POST", frozenset({"uploadId"})): "CompleteMultipartUpload",
    ("DELETE", frozenset({"uploadId"})): "AbortMultipartUpload",
}
_SIGNATURE: Final = re.compile(r"X-Amz-|x-id$")  # parameters of a presigned link and of SDKs
# Headers of the connection, or headers that the sender creates.
_HOP: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-encoding", "date"}
)
_DENIED_JSON: Final = {
    "__type": "com.amazon.coral.service#AccessDeniedException",
    "message": "not authorized",
}
_XML: Final = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{0}</Code><Message>{0}</Message></Error>'


class UnknownCall(Exception):  # noqa: N818 - names the thing
    """A request without a permission in the tables."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, as IAM sees it.

    Attributes:
        operation: The API's name.
        action: The permission that it needs.
        resource: The ARN that it needs the permission for; `*` if the service has no resources.
        namespace: CloudWatch's condition key; None for other services.
        prefix: The condition key of the permission to list a bucket; None for other calls.
        status: The HTTP status of the answer.
    """

    operation: str
    action: str
    resource: str
    namespace: str | None = None
    prefix: str | None = None
    status: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """One action on one resource that a policy allows."""

    action: str
    resource: str
    namespace: str | None = None
    prefix: str | None = None

    def covers(self, call: Call) -> bool:
        return (
            self.action == call.action
            and fnmatchcase(call.resource, self.resource)
            and self.namespace == call.namespace
            and (self.prefix is None or (call.prefix is not None and fnmatchcase(call.prefix, self.prefix)))
        )


def grants_of(policy: dict[str, Any]) -> set[Grant]:
    """Return every action on every resource of a policy; raise for unknown syntax."""
    grants: set[Grant] = set()
    for statement in policy["Statement"]:
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}, statement
        assert statement["Effect"] == "Allow", statement
        namespace = prefix = None
        if "StringLike" in (condition := statement.get("Condition", {})):
            prefix = condition["StringLike"]["s3:prefix"]
            assert condition == {"StringLike": {"s3:prefix": prefix}}
        elif condition:
            namespace = condition["StringEquals"].get("cloudwatch:namespace")
            via = condition["StringEquals"].get("kms:ViaService")
            names = {"cloudwatch:namespace": namespace, "kms:ViaService": via}
            assert condition == {"StringEquals": {name: value for name, value in names.items() if value}}
        new = {
            Grant(action, resource, namespace, prefix)
            for action in _listed(statement["Action"])
            for resource in _listed(statement["Resource"])
        }
        assert not new & grants, f"allowed twice: {new & grants}"
        grants |= new
    return grants


def worker_adapters(source: Path) -> list[Path]:
    """Return the modules of `nanoagent` that make the AWS calls of a worker."""
    return [
        *sorted((source / "broker").glob("*.py")),
        *sorted((source / "storage").glob("*.py")),
        source / "telemetry/cloudwatch.py",
    ]


def operations_in(*modules: Path) -> set[str]:
    """Return the AWS operations that modules call in their text. Signing a link is not an operation."""
    calls = {
        call
        for module in modules
        for call in re.findall(
            r"\b(?:_client|client|s3|sqs|_ssm|_secrets_manager)\.([a-z]+_[a-z0-9_]+)\(", module.read_text()
        )
    }
    return {call.title().replace("_", "") for call in calls - {"generate_presigned_url"}}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@dataclass(slots=True)
class Recorder:
    """The proxy; `async with` starts and stops it.

    Args:
        upstream: The URL of the services.
        host: The address to listen on.
        grants: The allowed actions; None: all. As on AWS, a missing key is then AccessDenied for a caller
            that may not list the bucket.
        fault: Decides which calls are answered with an internal error.
        refusal: Returns the HTTP status and AWS's code to refuse a call with, or None.
        names: Real name of a queue or bucket → its name in the policy.

    Attributes:
        calls: The calls, in order.
        unknown: Requests that are not in the tables.
    """

    upstream: str
    host: str = "127.0.0.1"
    grants: set[Grant] | None = None
    fault: Callable[[Call], bool] = lambda _: False
    refusal: Callable[[Call], tuple[int, str] | None] = lambda _: None
    names: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    url: str = ""
    _runner: web.AppRunner | None = None
    _client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(
            client_max_size=1 << 30
        )  # aiohttp decompresses a compressed body when it is read
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._client = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, 0)
        await site.start()
        self.url = f"http://{self.host}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop answering. Idempotent."""
        runner, self._runner = self._runner, None
        client, self._client = self._client, None
        if runner is not None:
            await runner.cleanup()
        if client is not None:
            await client.close()

    def environment(self) -> dict[str, str]:
        """Return the variables that make a worker use this proxy."""
        return {f"AWS_ENDPOINT_URL{service}": self.url for service in _ENDPOINTS}

    def used(self) -> set[Grant]:
        """Return the grants that a call has needed."""
        return {grant for grant in self.grants or () if any(grant.covers(call) for call in self.calls)}

    def refused(self) -> set[Call]:
        """Return the calls that no grant covers."""
        return {call for call in self.calls if not self._allows(call)}

    def operations(self) -> set[str]:
        """Return the API's names of all calls."""
        return {call.operation for call in self.calls}

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        try:
            call = self._recognized(request, body)
        except UnknownCall as unknown:
            self.unknown.append(str(unknown))
            return web.Response(
                status=501, text=f"no such call in tests/support/services/recorder.py: {unknown}"
            )
        answer = await self._answer(request, body, call)
        self.calls.append(replace(call, status=answer.status))
        return answer

    async def _answer(self, request: web.Request, body: bytes, call: Call) -> web.Response:
        is_s3 = call.action.startswith("s3:")
        if not self._allows(call):
            return _denied(is_s3=is_s3)
        if self.fault(call):
            return web.Response(status=500, text=_XML.format("InternalError") if is_s3 else "{}")
        if (refusal := self.refusal(call)) is not None:
            return _refused(*refusal, is_s3=is_s3)
        answer = await self._forward(request, body)
        if is_s3 and answer.status == 404 and not self._allows(_listing(call)):
            return _denied(is_s3=True)
        return answer

    def _allows(self, call: Call) -> bool:
        return self.grants is None or any(grant.covers(call) for grant in self.grants)

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        assert self._client is not None
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
        # Keep the requested address: SQS's answers name queues by it.
        headers.append(("Host", request.host))
        async with self._client.request(
            request.method,
            f"{self.upstream}{request.raw_path}",
            headers=headers,
            data=io.BytesIO(body),
            allow_redirects=False,
        ) as answer:
            # The answer to HEAD has the length of the object, but no body.
            dropped = _HOP - {"content-length"} if request.method == "HEAD" else _HOP
            passed = [(name, value) for name, value in answer.headers.items() if name.lower() not in dropped]
            return web.Response(status=answer.status, body=await answer.read(), headers=dict(passed))

    # --- recognising calls

    def _recognized(self, request: web.Request, body: bytes) -> Call:
        target = request.headers.get("X-Amz-Target")
        if target is None:
            return self._s3_call(request)
        service, _, operation = target.partition(".")
        action = ACTIONS.get(operation, "")
        if service == "AmazonSQS" and action.startswith("sqs:"):
            fields = json.loads(body)
            queue = self._name(fields.get("QueueName") or fields["QueueUrl"].rsplit("/", 1)[-1])
            return Call(operation, action, f"arn:aws:sqs:{_REGION}:{_ACCOUNT}:{queue}")
        if service == "AmazonSSM" and action.startswith("ssm:"):
            # A version behind a colon is not a part of the ARN.
            name = json.loads(body)["Name"].partition(":")[0].lstrip("/")
            return Call(operation, action, f"arn:aws:ssm:{_REGION}:{_ACCOUNT}:parameter/{name}")
        if service == "secretsmanager" and action.startswith("secretsmanager:"):
            # Secrets Manager adds six random characters to the name.
            arn = f"arn:aws:secretsmanager:{_REGION}:{_ACCOUNT}:secret:{json.loads(body)['SecretId']}-a1B2c3"
            return Call(operation, action, arn)
        if service.startswith("GraniteService") and action.startswith("cloudwatch:"):
            return Call(operation, action, "*", namespace=json.loads(body)["Namespace"])
        raise UnknownCall(target)

    def _s3_call(self, request: web.Request) -> Call:
        bucket, _, key = request.path.lstrip("/").partition("/")
        if request.method == "GET" and "list-type" in request.query and not key:
            resource = f"arn:aws:s3:::{self._name(bucket)}"
            prefix = request.query.get("prefix", "")
            return Call("ListObjectsV2", ACTIONS["ListObjectsV2"], resource, prefix=prefix)
        wanted = frozenset(name for name in request.query if not _SIGNATURE.match(name))
        operation = _S3.get((request.method, wanted))
        if operation is None or not key or "x-amz-copy-source" in request.headers:
            raise UnknownCall(f"{request.method} {request.raw_path}")
        return Call(operation, ACTIONS[operation], f"arn:aws:s3:::{self._name(bucket)}/{key}")

    def _name(self, name: str) -> str:
        return self.names.get(name, name)


def _listing(call: Call) -> Call:
    """Return the grant that a caller needs to learn that a key of the bucket is missing."""
    return Call("ListObjectsV2", "s3:ListBucket", call.resource.split("/")[0])


def _refused(status: int, code: str, *, is_s3: bool) -> web.Response:
    if is_s3:
        return web.Response(status=status, text=_XML.format(code), content_type="application/xml")
    return web.json_response({"__type": code, "message": code}, status=status)


def _denied(*, is_s3: bool) -> web.Response:
    if is_s3:
        return web.Response(status=403, text=_XML.format("AccessDenied"), content_type="application/xml")
    return web.json_response(_DENIED_JSON, status=400)
