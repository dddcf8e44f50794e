"""Jobs that refer to secrets, in a worker with real services: what the program gets, and who sees a value."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import secrets
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from support.agents.worker import RESULT_DEADLINE_S, WorkerUnderTest
from support.services.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nanoagent.dev.local_services import EmbeddedStack

ALLOW: Final = (
    "shop=ssm:/prod/shop/**,shop=secretsManager:prod/shop,"
    "*=ssm:/fn/{functionId}/*,*=ssm:/tenants/{tenantId}/{functionId}"
)
# Prints what it has, in several ways, and fails with it.
PRINTS: Final = """
import base64, json, os, sys, urllib.parse
secrets = [os.environ[name] for name in ("DB", "PASSWORD")]
for secret in secrets:
    sys.stdout.write(secret[:5])
    sys.stdout.flush()
    sys.stdout.write(secret[5:] + "\\n")
    print(json.dumps({"v": secret}), urllib.parse.quote(secret), repr(secret))
    print(base64.b64encode(f"user:{secret}".encode()).decode(), file=sys.stderr)
print(len(secrets[0]), hash is None)
if os.environ.get("LONG"):
    for _ in range(40_000):
        print(secrets[0])
raise SystemExit(f"cannot connect: {secrets[1]}") if not os.environ.get("FINE") else SystemExit(0)
"""
ASKS: Final = "import os\nprint(len(os.environ['DB']))\nopen('/output/db', 'w').write(os.environ['DB'])\n"

pytestmark = pytest.mark.asyncio(loop_scope="session")  # as the worker's


def fresh() -> str:
    """A value with characters that JSON and URLs write in another way."""
    return f"cnry/{secrets.token_hex(8)} \"é&'"


class Vault:
    """The services that keep secrets, of the embedded stack."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._stack = stack

    async def parameter(self, name: str, value: str) -> None:
        async with self._stack.clients() as clients:
            ssm = await clients.ssm()
            await ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)

    async def secret(self, name: str, value: str) -> None:
        async with self._stack.clients() as clients:
            service = await clients.secrets_manager()
            with contextlib.suppress(service.exceptions.ResourceNotFoundException):
                await service.put_secret_value(SecretId=name, SecretString=value)
                return
            await service.create_secret(Name=name, SecretString=value)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def worker(
    stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[WorkerUnderTest]:
    """A worker that logs everything, and resolves secrets."""
    settings = {
        "SECRETS_ALLOW": ALLOW,
        "SECRETS_CACHE_SECONDS": "1",
        "LOG_LEVEL": "DEBUG",
        "MAX_ATTEMPTS": "2",
        **{f"WARM_POOL_{runtime}_SIZE": "0" for runtime in ("NODEJS", "CPP", "GO")},
    }
    async with WorkerUnderTest(stack, tmp_path_factory.mktemp("worker"), settings) as worker:
        yield worker


@pytest.fixture
def vault(stack: EmbeddedStack) -> Vault:
    return Vault(stack)


def shows(text: str, secret: str) -> bool:
    """Whether a text has a value, as it is or as JSON, URLs or Base64 have it."""
    mark = re.search(r"[0-9a-f]{16}", secret)
    assert mark is not None
    encoded = [base64.b64encode(f"{before}{secret}".encode())[8:24].decode() for before in ("", "x", "xy")]
    return any(way in text for way in (mark[0], *encoded))


def env(**more: Any) -> dict[str, Any]:
    return {
        "DB": {"ssm": "/prod/shop/db"},
        "PASSWORD": {"secretsManager": "prod/shop", "key": "password"},
        **more,
    }


async def test_a_printed_secret_is_hidden_wherever_it_could_be_kept(
    worker: WorkerUnderTest, vault: Vault, stack: EmbeddedStack
):
    database, password = fresh(), fresh()
    await vault.parameter("/prod/shop/db", database)
    await vault.secret("prod/shop", json.dumps({"user": "u", "password": password}))
    key = await worker.upload({"main.py": PRINTS})
    job = {"functionId": "shop", "s3Key": key, "env": env(STAGE="prod")}
    failed = await worker.run(**job)
    assert failed["errorType"] == "USER_ERROR"
    assert failed["errorMessage"] == "cannot connect: ***"
    assert f"{len(database)} False" in failed["stdout"]
    assert failed["stdout"].splitlines()[0] == "***"
    assert failed["stdout"].count("***") == 8
    succeeded = await worker.run(**job | {"env": env(FINE="1")})
    assert succeeded["status"] == "SUCCESS"
    # Output that is cut in the middle.
    cut = await worker.run(**job | {"env": env(LONG="1", FINE="1")})
    assert cut["stdoutTruncatedBytes"] > 0

    kept = [json.dumps(result, ensure_ascii=False) for result in (failed, succeeded, cut)]
    kept += [worker.log.read_text()]
    async for name in worker.redis.scan_iter("*"):
        if await worker.redis.type(name) == b"string":
            kept.append(f"{name!r} {await worker.redis.get(name)!r}")
    for bucket in (stack.code_bucket, stack.data_bucket):
        for name in await stack.buckets.keys(bucket):
            kept.append((await stack.buckets.read(bucket, name)).decode(errors="replace"))
    kept += [(await worker.get(path))[1] for path in ("/metrics", "/readyz", "/pool")]
    assert "run begins" in kept[3]
    for secret in (database, password):
        assert not any(shows(text, secret) for text in kept)
        # The ends of the cut show no part of a value either.
        before, _, behind = cut["stdout"].split("…")
        assert not re.search(r"cnr|nry|[0-9a-f]{6}", before[-40:] + behind[:40])


async def test_a_rotated_secret_is_seen_after_the_cache_time(worker: WorkerUnderTest, vault: Vault):
    await vault.parameter("/fn/rotates/db", "a" * 10)
    key = await worker.upload({"main.py": "import os\nprint(len(os.environ['DB']))"})
    job = {"functionId": "rotates", "s3Key": key, "env": {"DB": {"ssm": "/fn/rotates/db"}}}
    assert (await worker.run(**job))["stdout"] == "10\n"
    await vault.parameter("/fn/rotates/db", "b" * 20)
    async with asyncio.timeout(RESULT_DEADLINE_S):
        while (await worker.run(**job))["stdout"] != "20\n":  # noqa: ASYNC110 - SECRETS_CACHE_SECONDS
            await asyncio.sleep(0.1)
    assert await worker.metric("worker_secrets_total", outcome="read") >= 2


@pytest.mark.parametrize(
    "function_id",
    [
        "*",
        "**",
        "victim/*",
        "../victim",
        "victim/..",
        ".*",
        "[v]ictim",
        "victi?",
        "{functionId}",
        "VICTIM",
        "vi",
        "",
    ],
)
async def test_an_id_that_looks_like_a_pattern_gets_no_other_functions_secret(
    function_id: str, worker: WorkerUnderTest, vault: Vault
):
    """The sender chooses the ID. An attacker without the ID of the victim must get nothing."""
    secret = fresh()
    for name in ("/fn/victim/db", "/fn/victim/x", "/tenants/acme/victim"):
        await vault.parameter(name, secret)
    key = await worker.upload({"main.py": ASKS})
    for name in ("/fn/victim/db", "/tenants/acme/victim", "/prod/shop/db"):
        fields: dict[str, Any] = {"functionId": function_id} if function_id else {}
        result = await worker.run(
            s3Key=key, env={"DB": {"ssm": name}}, tenantId=function_id or "victim", **fields
        )
        assert result["errorType"] == "INVALID_JOB", result
        assert (
            f"env: DB refers to the secret ssm:{name}, which SECRETS_ALLOW does not" in result["errorMessage"]
        )
        assert not shows(json.dumps(result), secret)
        assert (result["stdout"], result["outputFiles"], result["exitCode"]) == ("", [], -1)


@pytest.mark.parametrize(
    "name", ["/fn/*/db", "/fn/victim/../victim/db", "/fn/victim/db:1", "/aws/reference/x/../y"]
)
async def test_a_reference_that_looks_like_a_pattern_is_no_reference(name: str, worker: WorkerUnderTest):
    result = await worker.run(s3Key="none.zip", env={"DB": {"ssm": name}})
    assert result["errorType"] == "INVALID_JOB"
    assert "the value of DB is neither a string nor a reference" in result["errorMessage"]


async def test_a_tenant_gets_its_secrets(worker: WorkerUnderTest, vault: Vault):
    await vault.parameter("/tenants/acme/t", "value")
    job: dict[str, Any] = {"functionId": "t", "s3Key": await worker.upload({"main.py": ASKS})}
    job["env"] = {"DB": {"ssm": "/tenants/acme/t"}}
    assert (await worker.run(**job, tenantId="acme"))["stdout"] == "5\n"
    assert (await worker.run(**job, tenantId="other"))["errorType"] == "INVALID_JOB"
    assert (await worker.run(**job))["errorType"] == "INVALID_JOB"


async def test_a_missing_secret_is_the_senders_fault_in_both_languages(worker: WorkerUnderTest):
    job: dict[str, Any] = {"functionId": "shop", "s3Key": await worker.upload({"main.py": ASKS})}
    job["env"] = {"DB": {"ssm": "/prod/shop/none"}}
    english, korean = await worker.run(**job, locale="en"), await worker.run(**job, locale="ko")
    assert english["errorMessage"] == "env: DB: the secret ssm:/prod/shop/none does not exist"
    assert "Create it in the account and region of the worker" in english["hint"]
    assert "존재하지 않습니다" in korean["errorMessage"]
    assert (english["errorType"], english["attempt"]) == ("INVALID_JOB", 1)


async def test_by_default_no_secret_is_resolved_and_no_service_is_asked(
    stack: EmbeddedStack, vault: Vault, tmp_path: Path
):
    secret = fresh()
    await vault.parameter("/prod/shop/db", secret)
    async with Recorder(stack.endpoint_url) as recorder:
        settings = recorder.environment() | {"LOG_LEVEL": "DEBUG"}
        async with WorkerUnderTest(stack, tmp_path, settings) as worker:
            key = await worker.upload({"main.py": ASKS})
            result = await worker.run(functionId="shop", s3Key=key, env={"DB": {"ssm": "/prod/shop/db"}})
            assert result["errorType"] == "INVALID_JOB"
            assert "(SECRETS_ALLOW is empty)" in result["errorMessage"]
            assert "SECRETS_ALLOW, such as shop=ssm:/prod/shop/db" in result["hint"]
            assert not shows(worker.log.read_text(), secret)
    assert not any(call.action.startswith(("ssm:", "secretsmanager:")) for call in recorder.calls)


async def test_a_service_that_throttles_fails_the_attempt_and_not_the_job(
    stack: EmbeddedStack, vault: Vault, tmp_path: Path
):
    await vault.parameter("/fn/f/db", "value")
    async with Recorder(stack.endpoint_url) as recorder:
        throttled = 3  # the tries of one attempt

        def throttle(call: Any) -> tuple[int, str] | None:
            nonlocal throttled
            if call.operation != "GetParameter" or not throttled:
                return None
            throttled -= 1
            return 400, "ThrottlingException"

        recorder.refusal = throttle
        settings = recorder.environment() | {"SECRETS_ALLOW": ALLOW, "SECRETS_CACHE_SECONDS": "0"}
        async with WorkerUnderTest(stack, tmp_path, settings) as worker:
            job = {"s3Key": await worker.upload({"main.py": ASKS}), "env": {"DB": {"ssm": "/fn/f/db"}}}
            result = await worker.run(**job)
            assert (result["stdout"], result["attempt"]) == ("5\n", 2)
            # Denied: the operator's policy. The job is not tried again.
            recorder.refusal = lambda call: (
                (400, "AccessDeniedException") if call.operation == "GetParameter" else None
            )
            result = await worker.run(**job)
            assert (result["errorType"], result["attempt"]) == ("INVALID_JOB", 1)
            assert "it lacks ssm:GetParameter" in result["errorMessage"]
            # Throttled for ever: given up as the platform's failure.
            recorder.refusal = lambda call: (
                (400, "ThrottlingException") if call.operation == "GetParameter" else None
            )
            result = await worker.run(**job)
            assert (result["errorType"], result["attempt"]) == ("PLATFORM", 5)
            assert "the service that keeps the secrets of the job failed" in result["errorMessage"]


async def test_check_warns_about_secrets_that_the_role_may_not_read(stack: EmbeddedStack, vault: Vault):
    await vault.parameter("/check/there", "hunter22")
    rules = "*=ssm:/check/{functionId}/*,f=ssm:/check/there,f=ssm:/check/none,*=secretsManager:denied/**"
    async with Recorder(stack.endpoint_url) as recorder:
        recorder.refusal = lambda call: (
            (400, "AccessDeniedException") if call.operation == "GetSecretValue" else None
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nanoagent", "check", "--json", "--env-file", os.devnull),
            env=os.environ | stack.environment() | recorder.environment() | {"SECRETS_ALLOW": rules},
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await process.communicate()
    found = json.loads(said)
    assert found["problems"]["secrets"] is None
    assert found["warnings"]["secrets"] == [
        "the secret ssm:/check/none does not exist",
        (
            "secretsManager:denied/nanoagent-probe: access is denied; compare the worker's role with "
            "deploy/iam-policy-secrets.json"
        ),
    ]
    assert b"hunter22" not in said
