"""Every setting, in one frozen object, read once.

Environment variables, or a `.env` file beside the process; the environment wins. The tables in
docs/configuration.md are generated from this module. AWS endpoints and credentials follow the SDK's own
variables (`AWS_ENDPOINT_URL`, …), Docker's address follows `DOCKER_HOST`; they are not repeated here.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nanoagent.common import gateway_address
from nanoagent.common.units import MIB
from nanoagent.model import expectations
from nanoagent.model.errors import ConfigError
from nanoagent.model.job import (
    DEFAULT_MEMORY_MB,
    MAX_TIMEOUT_MS,
    MIN_MEMORY_MB,
    JobDefaults,
    NetworkPolicy,
    Runtime,
)
from nanoagent.model.text import Locale

_SOCKET_PATH_MAX: Final = 107  # sockaddr_un.sun_path less its NUL, unix(7)
_SLOT_SUFFIX_LENGTH: Final = len("/") + 40 + len("/slots/0000000000/agent.sock")  # see container.slot
# For how long SQS lets one receipt be held, however often it is renewed: "SQS visibility timeout".
_MAX_HELD_S: Final = 43_200
# The time that a job may need beside its program and its build: two waits for admission
# (runner._ADMISSION_TIMEOUT_S), fetching, uploading, publishing. Measured in seconds; this is generous.
_BESIDE_S: Final = 600
_MAX_BUILD_S: Final = _MAX_HELD_S - MAX_TIMEOUT_MS // 1000 - _BESIDE_S
_REMAPPED_IDS: Final = 65_536  # see container.engine
_LEAST_UIDS: Final = 10_000
_MAX_EGRESS_PORTS: Final = 14  # network.listening_sockets allows 16; the gateway and DNS take one each
_HOST_PATTERN: Final = re.compile(
    r"\*|(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE
)

_SECRET_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_URL: Final = re.compile(r"https?://[^/\s]+")
# It stands in a header, and in a log it has to be found again: no character that JSON writes otherwise.
_KEY: Final = re.compile(r"[!#-\[\]-~]{1,4096}")
# The path of one call, which clients append to the base URL themselves.
_MODEL_CALL: Final = re.compile(
    r"/(?:(?:chat/)?completions|responses|embeddings|api/(?:generate|chat))/?(?:\?|$)"
)
_MAY_HAVE_A_PASSWORD: Final = re.compile(r"^AWS_ENDPOINT_URL|_PROXY$", re.IGNORECASE)

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _machine_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB


def _default_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:24] or "worker"
    return f"{host}-{secrets.token_hex(4)}"


def _default_worker_memory_mb() -> int:
    """What the machine has, less a quarter (at most 2 GiB) for the agent, Docker and the system."""
    total = _machine_memory_mb()
    return max(256, total - min(total // 4, 2048))


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSetting:
    """One model server.

    Attributes:
        url: Its address.
        models: Patterns of the models that it serves.
        api: What it speaks.
        key: Its key, None where it wants none.
    """

    url: str
    models: tuple[str, ...] = ("*",)
    api: Literal["openai", "ollama", "auto"] = "auto"
    key: str | None = field(default=None, repr=False)


def _parse_upstreams(text: str) -> tuple[UpstreamSetting, ...]:
    """The servers of AI_UPSTREAMS. What is wrong is told without the value, which may have a key in it.

    Raises:
        ValueError: It is not what it should be.
    """
    try:
        listed = json.loads(text)
    except ValueError as exc:
        where = f"it is not JSON at character {getattr(exc, 'pos', 0)}"
        raise ValueError(f"a JSON array of model servers, but {where}") from None
    if not isinstance(listed, list):
        raise ValueError("a JSON array of model servers")  # noqa: TRY004 - pydantic wants a ValueError
    try:
        return tuple(_upstream(entry, f"entry {number}") for number, entry in enumerate(listed, 1))
    except ValueError as exc:
        raise ValueError(f"a JSON array of model servers, but {exc}") from None


def _upstream(entry: object, which: str) -> UpstreamSetting:
    """One entry of AI_UPSTREAMS."""
    if not isinstance(entry, dict) or not entry.keys() <= {"url", "models", "api", "key", "key_env"}:
        raise ValueError(f"{which} should be an object with url, and models, api, key or key_env at most")
    url, models, api = entry.get("url"), entry.get("models", ["*"]), entry.get("api", "auto")
    if not isinstance(url, str) or (wanted := _wanted_url(url)) is not None:
        raise ValueError(f"{which}: url should be {wanted if isinstance(url, str) else 'text'}")
    if not isinstance(models, list) or not all(isinstance(name, str) and name for name in models):
        raise ValueError(f"{which}: models should be an array of names, * for any part")
    if api not in {"openai", "ollama", "auto"}:
        raise ValueError(f"{which}: api should be openai, ollama or auto")
    if "key" in entry and "key_env" in entry:
        raise ValueError(f"{which} should have key or key_env, not both")
    key = entry.get("key")
    if "key_env" in entry:
        key = os.environ.get(str(entry["key_env"]))
        if not key:
            raise ValueError(f"{which}: key_env names a variable that is not set in the environment")
    if key is not None and not (isinstance(key, str) and _KEY.fullmatch(key)):
        raise ValueError(f"{which}: its key should be printable ASCII without spaces, quotes and backslashes")
    if key is not None and "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError(f"{which} should not have a key where its url has a user and a password")
    return UpstreamSetting(url=url, models=tuple(models), api=api, key=key)


def _wanted_url(url: str) -> str | None:
    """What to write in place of a URL of a model server; None if it is right."""
    if not _URL.match(url):
        return "a URL that starts with http:// or https://"
    if (call := _MODEL_CALL.search(url)) is None:
        return None
    return f"the base URL of the model server, without {call[0].rstrip('?/')}"


class Settings(BaseSettings):
    """The worker's settings; docs/configuration.md shows each field's description."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        case_sensitive=False,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    # --- where jobs come from and results go
    aws_region: str = Field("ap-northeast-2", description="AWS region of the queue and the buckets")
    sqs_queue_url: str = Field(description="queue that jobs are taken from")
    sqs_dlq_url: str | None = Field(
        None, description="dead-letter queue; default: the queue's own redrive policy"
    )
    sqs_wait_seconds: int = Field(20, ge=0, le=20, description="duration of a long poll, seconds")
    sqs_visibility_seconds: int = Field(
        60, ge=5, le=43200, description="lease on a message, seconds; renewed while the job is in flight"
    )
    s3_code_bucket: str = Field(description="bucket of the code zips, unless a job names another")
    s3_user_data_bucket: str = Field(description="bucket that output files go to")
    redis_host: str = Field("localhost", description="host of the Redis server for results")
    redis_port: int = Field(6379, ge=1, le=65535, description="port of the Redis server")
    redis_db: NotNegative = Field(0, description="number of the Redis database")
    redis_username: str | None = Field(None, description="user on the Redis server, if it requires one")
    redis_password: str | None = Field(
        None, description="password on the Redis server, if it requires one", repr=False
    )
    redis_tls: bool = Field(False, description="connect to Redis with TLS")
    redis_tls_ca_file: Path | None = Field(
        None,
        description="PEM file of certificate authorities for the server's certificate, in addition "
        "to those of the machine",
    )
    redis_tls_key_file: Path | None = Field(
        None, description="PEM file of the client certificate's private key, not encrypted"
    )
    redis_tls_cert_file: Path | None = Field(
        None,
        validate_default=True,  # to find a key without a certificate
        description="PEM file of the client certificate, with its chain, if the server requires one",
    )
    result_ttl_seconds: Positive = Field(3600, description="time for which Redis keeps a result, seconds")
    max_result_bytes: int = Field(
        512 * 1024,
        ge=4096,
        description="size above which the full logs of a result go to S3 and are linked, bytes",
    )
    result_spool_mb: Positive = Field(
        256,
        description="size of the spool for results while Redis is unavailable, MiB; the worker "
        "takes no jobs while it is full",
    )

    # --- this worker
    worker_id: str = Field(
        default_factory=_default_worker_id,
        pattern=r"^[A-Za-z0-9-]{1,40}$",
        description="name of this worker; default: host name and a random part",
    )
    worker_memory_mb: Positive = Field(
        default_factory=_default_worker_memory_mb,
        description="memory for all containers together, MiB; default: the machine's memory minus a reserve",
    )
    worker_cpus: PositiveFloat = Field(
        default_factory=lambda: float(len(os.sched_getaffinity(0))),
        description="CPUs for all running jobs together; default: the CPUs of the machine",
    )
    max_memory_mb: int | None = Field(
        None,
        ge=MIN_MEMORY_MB,
        description="largest memoryMb of a job; default: the smaller one of 10240 and WORKER_MEMORY_MB",
    )
    cpu_min: PositiveFloat = Field(0.5, description="CPUs of the smallest job")
    cpu_max: PositiveFloat | None = Field(None, description="CPUs of the largest job; default: WORKER_CPUS")
    cpu_memory_mb: Positive = Field(1769, description="memoryMb for one CPU, MiB (the value of AWS Lambda)")
    cpu_burst: float = Field(
        2, ge=1, le=100, description="factor by which a job may exceed its CPUs while others are free"
    )
    function_max_share: float = Field(
        0.75,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="largest part of the memory and CPUs for the jobs and builds of one function "
        "(one job always fits); 1 for a worker of one function",
    )
    max_attempts: Positive = Field(5, description="attempts at a job that fails by the platform's fault")
    retry_base_seconds: PositiveFloat = Field(2, description="first delay before the next attempt, seconds")
    retry_max_seconds: float = Field(
        300,
        gt=0,
        le=_MAX_HELD_S,
        allow_inf_nan=False,
        description="longest delay before the next attempt, seconds",
    )
    drain_seconds: int = Field(
        120,
        ge=0,
        le=_MAX_HELD_S,
        description="time for running jobs to finish when the worker stops, seconds",
    )
    interruption_notices: Literal["none", "ec2"] = Field(
        "none", description="ec2: drain when EC2 or its Auto Scaling is about to terminate the instance"
    )
    locale: Locale = Field(
        "ko", description="language of the texts in a result, unless the job has a `locale`"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="lowest level that is logged"
    )
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="auto: text on a terminal, JSON elsewhere"
    )

    # --- containers
    docker_work_dir_root: Path = Field(
        Path("/tmp/tasks"),  # noqa: S108 - the contract's default
        description="folder for work directories and staged outputs",
    )
    docker_python_image: str = Field("nanoagent-python:latest", description="image of the Python runtime")
    docker_nodejs_image: str = Field("nanoagent-nodejs:latest", description="image of the Node.js runtime")
    docker_cpp_image: str = Field("nanoagent-cpp:latest", description="image of the C++ runtime")
    docker_go_image: str = Field("nanoagent-go:latest", description="image of the Go runtime")
    warm_pool_python_size: NotNegative = Field(1, description="containers kept ready for Python")
    warm_pool_nodejs_size: NotNegative = Field(1, description="containers kept ready for Node.js")
    warm_pool_cpp_size: NotNegative = Field(1, description="containers kept ready for C++")
    warm_pool_go_size: NotNegative = Field(1, description="containers kept ready for Go")
    container_idle_seconds: Positive = Field(
        300, description="time after which an unused bound container is retired, seconds"
    )
    container_max_runs: Positive = Field(
        1000, description="runs after which a container is retired; 1: no reuse"
    )
    container_sharing: Literal["function", "worker", "never"] = Field(
        "function",
        description="scope of a container: one function, all functions of this worker (requires "
        "L2), or one run (never)",
    )
    min_isolation: Literal["L2", "L1", "L0"] = Field(
        "L1", description="lowest isolation level at which the worker starts; L2: a sandbox for each run"
    )
    container_apparmor_profile: str = Field(
        "nanoagent",
        pattern=r"^[A-Za-z0-9_.-]{1,100}$",
        description="AppArmor profile of containers, on hosts that have AppArmor",
    )
    docker_runtime: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$",
        description="runtime of the containers, as listed by `docker info` (runsc, kata-runtime, …; "
        "docs/outer-walls.md); default: Docker's default runtime",
    )
    python_preload: str = Field(
        "auto",
        pattern=r"^(auto|none|[A-Za-z_][A-Za-z0-9_.]*(,[A-Za-z_][A-Za-z0-9_.]*)*)$",
        description="modules that Python imports before a run: auto (large modules that the "
        "function's code imports), none, or names for all functions, separated by "
        "commas",
    )
    container_max_age_seconds: Positive = Field(
        3600, description="age at which a container is retired, seconds"
    )
    container_uid_base: int = Field(
        1_900_000_000,
        ge=1000,
        le=1_900_000_000,
        description="lowest user ID of the containers, each of which has a different one; for "
        "example 20000 for a Docker that remaps user IDs",
    )
    max_processes: int = Field(256, ge=8, description="processes and threads of a run")
    max_open_files: int = Field(1024, ge=16, description="open files of a process")
    max_file_mb: Positive = Field(512, description="largest file that a run may write, MiB")
    tmp_max_mb: Positive = Field(512, description="size of /tmp, MiB (counts as memory)")
    work_max_mb: Positive = Field(
        512, description="data that a run may write to its working directory, MiB (counts as memory)"
    )
    output_dir_max_mb: Positive = Field(512, description="size of /output, MiB (counts as memory)")
    max_inodes: int = Field(16384, ge=64, le=1_000_000, description="files in each of these directories")

    # --- what a run may leave behind
    max_output_bytes: int = Field(
        256 * 1024, ge=1024, description="stdout and stderr that are kept, bytes each"
    )
    output_max_files: NotNegative = Field(100, description="output files uploaded per run")
    output_max_file_mb: Positive = Field(64, description="largest output file, MiB")
    output_max_total_mb: Positive = Field(256, description="all output files of a run together, MiB")
    output_url_style: Literal["plain", "presigned"] = Field(
        "plain", description="form of the links to output files"
    )
    output_url_expires_seconds: int = Field(
        3600, ge=1, le=604800, description="validity of a presigned link, seconds"
    )

    # --- code
    code_cache_dir: Path = Field(
        Path("/var/cache/nanoagent"), description="folder of code and built programs; workers may share it"
    )
    min_free_disk_mb: NotNegative = Field(
        256,
        description="free space on the disks of CODE_CACHE_DIR and DOCKER_WORK_DIR_ROOT below which "
        "the worker takes no jobs, MiB; 0: not checked",
    )
    code_cache_mb: Positive = Field(
        4096, description="size of the code cache, MiB; the program cache has the same size"
    )
    code_fresh_seconds: float = Field(
        1,
        ge=0,
        allow_inf_nan=False,
        description="time for which the worker does not ask S3 again whether code has changed, "
        "seconds; 0: it asks for every job",
    )
    code_max_zip_mb: Positive = Field(250, description="largest code zip, MiB")
    code_max_unpacked_mb: Positive = Field(512, description="largest unpacked code, MiB")
    code_max_file_mb: Positive = Field(250, description="largest file in unpacked code, MiB")
    code_max_entries: Positive = Field(100_000, description="files and folders in unpacked code")
    build_timeout_seconds: Positive = Field(120, description="longest duration of a build, seconds")
    build_memory_mb: int = Field(1024, ge=256, description="memory of a build, MiB")
    build_cpus: PositiveFloat = Field(
        1, description="CPUs reserved for a build; it may use more while they are free"
    )

    failure_memory_seconds: float = Field(
        60,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="time for which the failure cache answers for failed builds and for code that "
        "kills its containers, seconds; 0: never",
    )

    # --- AI client
    ai_endpoint: str | None = Field(
        None,
        description="model server of the AI gateway: an Ollama server, or a base URL as for the "
        "openai client",
    )
    ai_api_key: str | None = Field(None, description="key of that server, if it requires one", repr=False)
    ai_upstreams: str | None = Field(
        None,
        description='more model servers, with priority over AI_ENDPOINT: JSON, `[{"url": …, '
        '"models": ["gpt-*"], "api": "openai", "key_env": "OPENAI_KEY"}]`; `api` is '
        "openai, ollama or auto, and `key` may replace `key_env`",
        repr=False,
    )
    ai_model: str = Field("llama3:8b", description="model of a job without `modelId`")
    ai_models: str = Field(
        "*",
        min_length=1,
        description="models that functions may use: names separated by commas; * matches any text",
    )
    ai_max_tokens: NotNegative = Field(0, description="tokens of a run, prompts and answers; 0: unlimited")
    ai_function_tokens_per_minute: NotNegative = Field(
        0, description="tokens per minute of all runs of a function on this worker; 0: unlimited"
    )
    ai_max_requests: NotNegative = Field(1000, description="requests of a run to models; 0: unlimited")
    ai_max_concurrent: Positive = Field(8, description="requests of a run to models at a time")
    ai_max_request_bytes: int = Field(
        8 * MIB, ge=1024, le=64 * MIB, description="largest request to a model, bytes"
    )
    ai_max_bytes: NotNegative = Field(
        256 * MIB, description="requests and answers of a run together, bytes; 0: unlimited"
    )
    ai_timeout_seconds: PositiveFloat = Field(300, description="longest duration of one request, seconds")
    ai_drain_seconds: float = Field(
        10,
        ge=0,
        allow_inf_nan=False,
        description="time for which an answer is read on for its tokens after the job has closed "
        "the connection, seconds",
    )
    ai_remote_tools: bool = Field(
        False,
        description="allow functions to use the tools of a model server: fetch URLs, search, run "
        "tools, read stored data",
    )
    ai_record: Literal["off", "store"] = Field(
        "off", description="store: upload the model requests of a run and the answers beside its output files"
    )
    ai_replay: Path | None = Field(
        None, description="folder of such recordings; they answer requests in place of model servers"
    )

    # --- what runs may reach
    network: NetworkPolicy = Field(
        NetworkPolicy.AI,
        description="none: no connections; ai: models, through the gateway; egress: the internet as "
        "well; a job can ask for less (`network`)",
    )
    network_max_connections: Positive = Field(
        64, description="connections of a run at a time, to the gateway and the internet; further ones wait"
    )
    egress_allow: str = Field(
        "*",
        description="hosts that runs may connect to: names, *.suffixes, or * for all; separated by commas",
    )
    egress_deny: str = Field(
        "",
        description="networks (CIDR) that runs may not connect to, in addition to private ones; "
        "separated by commas",
    )
    egress_ports: str = Field("80,443", description="TCP ports that runs may connect to; separated by commas")
    egress_max_mb: Positive = Field(1024, description="data that a run may send and receive together, MiB")

    # --- what it tests
    selftest_interval_seconds: NotNegative = Field(
        3600,
        description="interval of the self-test, which also runs before the first job, seconds; 0: never",
    )

    # --- what it tells
    metrics_host: str = Field("0.0.0.0", description="address for metrics and health checks")  # noqa: S104 - scraped from outside
    metrics_port: int = Field(
        8000, ge=0, le=65535, description="port for metrics and health checks; 0: any free port"
    )
    cloudwatch_enabled: bool = Field(True, description="send the peak memory of runs to CloudWatch")
    cloudwatch_interval_seconds: PositiveFloat = Field(
        60, description="interval of sending to CloudWatch, seconds"
    )
    price_per_gb_second: Decimal = Field(
        Decimal("0.0000166667"),
        ge=0,
        description="price of one GB-second of memory, for the savings in results (AWS Lambda x86)",
    )
    price_per_request: Decimal = Field(
        Decimal("0.0000002"), ge=0, description="price of one request, for the savings in results"
    )
    price_currency: str = Field("USD", min_length=1, max_length=8, description="currency of both prices")
    savings_runs: Positive = Field(1_000_000, description="runs that the savings refer to")

    @field_validator("sqs_queue_url", "sqs_dlq_url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not _URL.match(value):
            raise ValueError("a URL that starts with http:// or https://")
        return value

    @field_validator("ai_endpoint")
    @classmethod
    def _is_base_url(cls, value: str | None) -> str | None:
        if value is not None and (wanted := _wanted_url(value)) is not None:
            raise ValueError(wanted)
        return value

    @field_validator("egress_allow")
    @classmethod
    def _are_hosts(cls, value: str) -> str:
        for host in _listed(value):
            if not _HOST_PATTERN.fullmatch(host):
                raise ValueError(
                    "host names such as api.example.com, *.example.com or *, separated by commas; "
                    f"{host!r} is not one"
                )
        return value

    @field_validator("egress_deny")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for network in _listed(value):
            try:
                ipaddress.ip_network(network)
            except ValueError as exc:  # its error names the value
                raise ValueError(f"networks such as 10.0.0.0/8, separated by commas; {exc}") from None
        return value

    @field_validator("egress_ports")
    @classmethod
    def _are_ports(cls, value: str) -> str:
        ports = _listed(value)
        for port in ports:
            if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
                raise ValueError(f"ports: numbers from 1 to 65535, separated by commas; {port!r} is not one")
            if int(port) == gateway_address.PORT:
                raise ValueError(f"other ports than {port}, which the gateway has in a run's network")
        if len(set(map(int, ports))) != len(ports) or len(ports) > _MAX_EGRESS_PORTS:
            raise ValueError(f"at most {_MAX_EGRESS_PORTS} ports, each once")
        return value

    @field_validator("ai_api_key")
    @classmethod
    def _is_key(cls, value: str | None) -> str | None:
        if value is not None and not _KEY.fullmatch(value):
            raise ValueError("a key: printable ASCII without spaces, quotes and backslashes")
        return value

    @field_validator("ai_upstreams")
    @classmethod
    def _are_upstreams(cls, value: str | None) -> str | None:
        if value is not None:
            _parse_upstreams(value)
        return value

    @field_validator("ai_replay")
    @classmethod
    def _is_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("a folder that exists")
        return value

    @field_validator("redis_tls_ca_file", "redis_tls_key_file", "redis_tls_cert_file")
    @classmethod
    def _is_readable(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        if info.data.get("redis_tls") is False:
            raise ValueError("REDIS_TLS=true as well, without which this has no effect")
        try:
            value.read_bytes()
        except OSError as exc:
            raise ValueError(f"a file that this user may read ({exc.strerror})") from exc
        return value

    @field_validator("redis_tls_ca_file")
    @classmethod
    def _has_authorities(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=value)
            except ssl.SSLError as exc:
                raise ValueError("a file of certificates in PEM (-----BEGIN CERTIFICATE-----)") from exc
        return value

    @field_validator("redis_tls_cert_file")
    @classmethod
    def _fits_its_key(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        key = info.data.get("redis_tls_key_file")
        if value is None:
            if key is not None:
                raise ValueError("the PEM file of its certificate, because REDIS_TLS_KEY_FILE is set")
            return None
        try:
            ssl.create_default_context().load_cert_chain(value, key, password=_no_password)
        except (ssl.SSLError, ValueError) as exc:
            raise ValueError(
                "a file with a certificate in PEM whose private key, not encrypted, is in REDIS_TLS_KEY_FILE"
            ) from exc
        return value

    @field_validator("s3_code_bucket", "s3_user_data_bucket")
    @classmethod
    def _is_bucket(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value):
            raise ValueError("a bucket name: 3 to 63 of a-z 0-9 . -, a letter or digit at both ends")
        return value

    @field_validator("container_uid_base")
    @classmethod
    def _has_ids_above(cls, value: int) -> int:
        # Below 65,536 they end there (container.engine), and each container is to have one of its own.
        if _REMAPPED_IDS - _LEAST_UIDS < value < _REMAPPED_IDS:
            raise ValueError(f"at most {_REMAPPED_IDS - _LEAST_UIDS}, or at least {_REMAPPED_IDS}")
        return value

    @field_validator("docker_work_dir_root")
    @classmethod
    def _sockets_fit(cls, value: Path) -> Path:
        path = value.absolute()
        if len(os.fsencode(path)) + _SLOT_SUFFIX_LENGTH > _SOCKET_PATH_MAX:
            longest = _SOCKET_PATH_MAX - _SLOT_SUFFIX_LENGTH
            raise ValueError(f"a path of at most {longest} bytes: Unix sockets are made below it")
        return path

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        worker_mb = f"WORKER_MEMORY_MB={self.worker_memory_mb}"
        most_cpus = min(self.cpu_max or self.worker_cpus, self.worker_cpus)
        rules = (
            (
                self.largest_job_mb > self.worker_memory_mb,
                "MAX_MEMORY_MB",
                f"at most {worker_mb}, or no such job could ever run",
            ),
            (
                self.build_memory_mb > self.worker_memory_mb,
                "BUILD_MEMORY_MB",
                f"at most {worker_mb}, or no build could ever run",
            ),
            (
                self.cpu_min > most_cpus,
                "CPU_MIN",
                f"at most {most_cpus:g}, the smaller one of CPU_MAX and WORKER_CPUS",
            ),
            (
                self.result_spool_mb * MIB < self.max_result_bytes,
                "RESULT_SPOOL_MB",
                f"room for one result of MAX_RESULT_BYTES={self.max_result_bytes}",
            ),
            (
                self.build_timeout_seconds > _MAX_BUILD_S,
                "BUILD_TIMEOUT_SECONDS",
                f"at most {_MAX_BUILD_S}, or a build and the longest job could outlast the 12 hours of SQS",
            ),
            (
                self.ai_api_key is not None and self.ai_endpoint is None,
                "AI_ENDPOINT",
                "the model server that AI_API_KEY is for",
            ),
            (
                self.ai_api_key is not None and "@" in (self.ai_endpoint or ""),
                "AI_API_KEY",
                "no key where AI_ENDPOINT has a user and a password",
            ),
            (
                self.retry_base_seconds > self.retry_max_seconds,
                "RETRY_BASE_SECONDS",
                f"at most RETRY_MAX_SECONDS={self.retry_max_seconds:g}",
            ),
        )
        problems = [
            _told(name, getattr(self, name.lower()), expected) for wrong, name, expected in rules if wrong
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def least_receives(self) -> int:
        """What maxReceiveCount in the queue's redrive policy should be at least.

        Receipts that are no attempts count for it as well; in a FIFO queue also those of a message that goes
        back only because one before it in its group does.
        """
        return (10 if self.sqs_queue_url.endswith(".fifo") else 2) * self.max_attempts

    @property
    def largest_job_mb(self) -> int:
        """The largest `memoryMb` that is accepted, MiB."""
        return self.max_memory_mb or min(10_240, self.worker_memory_mb)

    @property
    def job_defaults(self) -> JobDefaults:
        """What `parse_job` fills in."""
        return JobDefaults(
            s3_bucket=self.s3_code_bucket,
            model_id=self.ai_model,
            max_memory_mb=self.largest_job_mb,
            memory_mb=min(DEFAULT_MEMORY_MB, self.largest_job_mb),
            network=self.network,
            locale=self.locale,
        )

    @property
    def upstreams(self) -> tuple[UpstreamSetting, ...]:
        """The model servers, in the order in which they are asked whether a model is theirs."""
        servers = () if self.ai_upstreams is None else _parse_upstreams(self.ai_upstreams)
        if self.ai_endpoint is None:
            return servers
        return (*servers, UpstreamSetting(url=self.ai_endpoint, key=self.ai_api_key))

    @property
    def allowed_models(self) -> tuple[str, ...]:
        """Patterns of the models that functions may use."""
        return tuple(part for name in self.ai_models.split(",") if (part := name.strip()))

    @property
    def named_models(self) -> tuple[str, ...]:
        """The models that the settings name in full, the default model first."""
        patterns = [*self.allowed_models, *(name for server in self.upstreams for name in server.models)]
        named = [pattern for pattern in patterns if not set(pattern) & set("*?[")]
        return tuple(dict.fromkeys([self.ai_model, *named]))

    @property
    def secrets(self) -> list[str]:
        """What must stand in no log: the settings' own, and the AWS SDK's in the environment."""
        upstreams = self.upstreams
        urls = [self.sqs_queue_url, self.sqs_dlq_url, *(server.url for server in upstreams)]
        urls += [value for name, value in os.environ.items() if _MAY_HAVE_A_PASSWORD.search(name)]
        found = [self.redis_password, *(_password_of(url) for url in urls if url)]
        found += [server.key for server in upstreams]
        found += [os.environ.get(name) for name in _SECRET_VARIABLES]
        return [secret for secret in found if secret]

    def image(self, runtime: Runtime) -> str:
        """The image of a runtime."""
        return str(getattr(self, f"docker_{runtime}_image"))

    def pool_size(self, runtime: Runtime) -> int:
        """How many containers are kept ready for a runtime."""
        return int(getattr(self, f"warm_pool_{runtime}_size"))

    @property
    def egress_hosts(self) -> tuple[str, ...]:
        """The patterns of EGRESS_ALLOW."""
        return tuple(_listed(self.egress_allow))

    @property
    def egress_denied(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks of EGRESS_DENY."""
        return tuple(ipaddress.ip_network(network) for network in _listed(self.egress_deny))

    @property
    def egress_port_numbers(self) -> tuple[int, ...]:
        """The ports of EGRESS_PORTS."""
        return tuple(int(port) for port in _listed(self.egress_ports))

    @property
    def preloaded_modules(self) -> tuple[str, ...]:
        """The Python modules that every interpreter has ready."""
        return () if self.python_preload in {"auto", "none"} else tuple(self.python_preload.split(","))

    def cpus_for(self, memory_mb: int) -> float:
        """The CPU share of a job of that size: proportional to memory, between CPU_MIN and CPU_MAX."""
        highest = min(self.cpu_max or self.worker_cpus, self.worker_cpus)
        return min(max(memory_mb / self.cpu_memory_mb, self.cpu_min), highest)

    def most_cpus_for(self, memory_mb: int) -> float:
        """What a job of that size may use while CPUs are free: CPU_BURST times its share."""
        return min(self.cpus_for(memory_mb) * self.cpu_burst, self.cpu_max or self.worker_cpus)


def _no_password() -> str:
    """Refuse an encrypted key, for which OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted")


def _listed(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _password_of(url: str) -> str | None:
    with suppress(ValueError):  # a URL that is none has none
        return unquote(urlsplit(url).password or "")
    return None


def load(env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from the environment and `env_file`.

    Raises:
        ConfigError: One or more are missing or wrong; all of them are listed.
    """
    try:
        # Required fields come from the environment, which mypy cannot know.
        return Settings(_env_file=env_file)  # type: ignore[call-arg]
    except ValidationError as exc:
        problems = [line for error in exc.errors() for line in _problem(error).splitlines()]
        raise ConfigError(problems) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{env_file}: cannot be read: {exc}"]) from exc


def _problem(error: object) -> str:
    """One of pydantic's errors as a sentence that starts with the variable's name."""
    assert isinstance(error, dict)  # noqa: S101 - pydantic's TypedDict, narrowed for mypy
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:  # from _hangs_together, a line each, which names the variable itself
        return message
    name = str(error["loc"][0]).upper()
    if error["type"] == "missing":
        description = Settings.model_fields[name.lower()].description
        return f"{name}: is not set; it should be the {description}"
    is_told = error["type"] == "value_error"  # by a validator above: its text is what it expects
    expected = message if is_told else expectations.in_words(name.lower(), Settings.model_json_schema())
    return _told(name, error["input"], expected)


def _told(name: str, value: object, expected: str) -> str:
    """The sentence about a wrong setting, with its value unless that may be a secret."""
    is_secret = not Settings.model_fields[name.lower()].repr or expectations.may_be_secret(name, str(value))
    return expectations.problem(name, value, expected, is_secret=is_secret)
