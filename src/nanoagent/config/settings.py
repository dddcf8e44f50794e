"""Every setting, and the values that follow from settings."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
from contextlib import suppress
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nanoagent.common.units import MIB
from nanoagent.config import consistency
from nanoagent.config.consistency import MAX_VISIBILITY_S
from nanoagent.config.secret_rules import SecretRule, parse_rules
from nanoagent.config.types import (
    AuthoritiesFile,
    BaseUrl,
    Bucket,
    CertificateFile,
    ExistingFolder,
    HostPatterns,
    ModelKey,
    Networks,
    NotNegative,
    OwnerPattern,
    Ports,
    Positive,
    PositiveFloat,
    SecretRules,
    SocketFolder,
    TlsFile,
    UidBase,
    Url,
    listed,
)
from nanoagent.config.upstreams import Upstreams, UpstreamSetting, parse_upstreams
from nanoagent.model.job import DEFAULT_MEMORY_MB, MIN_MEMORY_MB, JobDefaults, NetworkPolicy, Runtime
from nanoagent.model.text import Locale

# Secrets in variables of the AWS SDK, and variables whose URLs may contain a password.
_SECRET_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_URL_VARIABLES: Final = re.compile(r"^AWS_ENDPOINT_URL|_PROXY$", re.IGNORECASE)


def _machine_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB


def _default_worker_id() -> str:
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:24] or "worker"
    return f"{host}-{secrets.token_hex(4)}"


def _default_worker_memory_mb() -> int:
    """Return the machine's memory minus a quarter (at most 2 GiB) for the worker, Docker and the system."""
    total = _machine_memory_mb()
    return max(256, total - min(total // 4, 2048))


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

    # --- queue, buckets and results
    aws_region: str = Field("ap-northeast-2", description="AWS region of the queue and the buckets")
    sqs_queue_url: Url = Field(description="queue that jobs are taken from")
    sqs_dlq_url: Url | None = Field(
        None, description="dead-letter queue; default: the queue's redrive policy is used"
    )
    sqs_wait_seconds: int = Field(
        20,
        ge=0,
        le=20,
        description="duration of a long poll, seconds; at most a third of SQS_VISIBILITY_SECONDS is used",
    )
    sqs_visibility_seconds: int = Field(
        60, ge=5, le=43200, description="lease on a message, seconds; renewed while the job is in flight"
    )
    s3_code_bucket: Bucket = Field(description="bucket of the code zips, unless a job names another")
    s3_user_data_bucket: Bucket = Field(description="bucket that output files go to")
    redis_host: str = Field("localhost", description="host of the Redis server for results")
    redis_port: int = Field(6379, ge=1, le=65535, description="port of the Redis server")
    redis_db: NotNegative = Field(0, description="number of the Redis database")
    redis_username: str | None = Field(None, description="user on the Redis server, if it requires one")
    redis_password: str | None = Field(
        None, description="password on the Redis server, if it requires one", repr=False
    )
    redis_tls: bool = Field(False, description="connect to Redis with TLS")
    redis_tls_ca_file: AuthoritiesFile = Field(
        None,
        description="PEM file of certificate authorities for the server's certificate, in addition "
        "to those of the machine",
    )
    redis_tls_key_file: TlsFile = Field(
        None, description="PEM file of the client certificate's private key, not encrypted"
    )
    redis_tls_cert_file: CertificateFile = Field(
        None,
        validate_default=True,  # if it is not set, REDIS_TLS_KEY_FILE must not be set
        description="PEM file of the client certificate, with its chain, if the server requires one",
    )
    result_ttl_seconds: Positive = Field(3600, description="time for which Redis keeps a result, seconds")
    job_index_size: NotNegative = Field(
        2000,
        description="number of recent jobs of all workers that `nanoagent jobs` can list; 0: this worker's "
        "jobs are not listed",
    )
    job_index_ttl_seconds: Positive = Field(
        604_800, description="time for which `nanoagent jobs` can list a job, seconds"
    )
    max_result_bytes: int = Field(
        512 * 1024,
        ge=4096,
        description="limit on the size of a result, bytes; if a result is larger, its full stdout and stderr "
        "go to S3, and the result has links to them",
    )
    result_spool_mb: Positive = Field(
        256,
        description="size of the spool for results while Redis is unavailable, MiB; while it is full, the "
        "worker takes no jobs",
    )

    # --- worker
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
        description="CPUs for all running jobs together; default: the CPUs that the worker may use",
    )
    max_memory_mb: int | None = Field(
        None,
        ge=MIN_MEMORY_MB,
        description="largest memoryMb of a job; default: the smaller one of 10240 and WORKER_MEMORY_MB",
    )
    cpu_min: PositiveFloat = Field(0.5, description="minimum number of CPUs of a job")
    cpu_max: PositiveFloat | None = Field(
        None, description="maximum number of CPUs of a job; default: WORKER_CPUS"
    )
    cpu_memory_mb: Positive = Field(1769, description="memoryMb for one CPU, MiB (the value of AWS Lambda)")
    cpu_burst: float = Field(
        2, ge=1, le=100, description="factor by which a job may exceed its CPUs while other CPUs are free"
    )
    function_max_share: float = Field(
        0.75,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="part of the memory and CPUs that the jobs and builds of one function may use "
        "together; a single job is always allowed; set 1 if the worker has only one function",
    )
    max_attempts: Positive = Field(5, description="attempts at a job that fails because of a platform error")
    retry_base_seconds: PositiveFloat = Field(2, description="first delay before the next attempt, seconds")
    retry_max_seconds: float = Field(
        300,
        gt=0,
        le=MAX_VISIBILITY_S,
        allow_inf_nan=False,
        description="longest delay before the next attempt, seconds",
    )
    drain_seconds: int = Field(
        120,
        ge=0,
        le=MAX_VISIBILITY_S,
        description="time for running jobs to finish when the worker stops, seconds",
    )
    interruption_notices: Literal["none", "ec2"] = Field(
        "none",
        description="ec2: drain when EC2 or Auto Scaling is about to stop or terminate the instance",
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
    docker_work_dir_root: SocketFolder = Field(
        Path("/tmp/tasks"),  # noqa: S108 - the contract's default
        description="folder for work directories and staged outputs",
    )
    docker_python_image: str = Field("nanoagent-python:latest", description="image of the Python runtime")
    docker_nodejs_image: str = Field("nanoagent-nodejs:latest", description="image of the Node.js runtime")
    docker_cpp_image: str = Field("nanoagent-cpp:latest", description="image of the C++ runtime")
    docker_go_image: str = Field("nanoagent-go:latest", description="image of the Go runtime")
    warm_pool_python_size: NotNegative = Field(
        1,
        description="containers kept ready for Python; more after several were taken at once; 0: none",
    )
    warm_pool_nodejs_size: NotNegative = Field(
        1,
        description="containers kept ready for Node.js; more after several were taken at once; 0: none",
    )
    warm_pool_cpp_size: NotNegative = Field(
        1,
        description="containers kept ready for C++; more after several were taken at once; 0: none",
    )
    warm_pool_go_size: NotNegative = Field(
        1,
        description="containers kept ready for Go; more after several were taken at once; 0: none",
    )
    container_idle_seconds: Positive = Field(
        3600, description="time after which an unused bound container is retired, seconds"
    )
    container_max_runs: Positive = Field(
        1000, description="runs after which a container is retired; 1: no reuse"
    )
    container_sharing: Literal["function", "tenant", "worker", "never"] = Field(
        "function",
        description="runs that may share a container: those of one function, those of one owner (tenant; "
        "requires L2), all runs on this worker (worker; requires L2), or none (never)",
    )
    container_recycling: Literal["auto", "never"] = Field(
        "auto",
        description="auto: at L2, a container that would be removed to make room becomes generic again, if "
        "nothing of its function is left in it; never: it is removed, and another one is created",
    )
    tenant_pattern: OwnerPattern | None = Field(
        None,
        description="for CONTAINER_SHARING=tenant, and jobs without `tenantId`: a regular expression for the "
        "beginning of `s3Key` or `functionId`, whose group is the owner, such as `users/([^/]+)/`",
    )
    min_isolation: Literal["L2", "L1", "L0"] = Field(
        "L1",
        description="required isolation level; L2: the worker starts only on a host that allows a sandbox "
        "for each run; L1 or L0: the worker starts at every level",
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
        description="modules that Python imports before a run: auto (large and standard modules that the "
        "function's code imports), none, or names for all functions, separated by "
        "commas",
    )
    function_reuse: Literal["imports", "none"] = Field(
        "imports",
        description="what jobs may reuse of earlier runs of their function: imports (a job with `reuse: "
        "imports` gets installed Python packages imported), or none",
    )
    python_bytecode: Literal["auto", "never"] = Field(
        "auto",
        description="auto: Python code is compiled once in the background, and later runs use the byte code; "
        "never: each run compiles the modules that it imports",
    )
    container_max_age_seconds: Positive = Field(
        3600,
        description="age at which a container is retired, seconds; for each container up to a fifth less, at "
        "random",
    )
    container_uid_base: UidBase = Field(
        1_900_000_000,
        ge=1000,
        le=1_900_000_000,
        description="lowest user ID of containers; each container has a different ID; for example 20000 "
        "if Docker remaps user IDs",
    )
    max_processes: int = Field(256, ge=8, description="processes and threads of a run")
    max_open_files: int = Field(1024, ge=16, description="open files of a process")
    max_file_mb: Positive = Field(512, description="largest file that a run may write, MiB")
    tmp_max_mb: Positive = Field(512, description="size of /tmp, MiB (counts as memory)")
    work_max_mb: Positive = Field(
        512, description="data that a run may write to its working directory, MiB (counts as memory)"
    )
    output_dir_max_mb: Positive = Field(512, description="size of /output, MiB (counts as memory)")
    max_inodes: int = Field(
        16384, ge=64, le=1_000_000, description="files in each writable directory of a run"
    )

    # --- output of runs
    max_output_bytes: int = Field(
        256 * 1024, ge=1024, description="size above which stdout and stderr are cut, bytes each"
    )
    live_logs: Literal["followed", "always", "off"] = Field(
        "followed",
        description="jobs whose output is stored in Redis while they run: those that somebody follows "
        "(`nanoagent logs ID --follow`), all (always), or none (off)",
    )
    live_logs_bytes_per_second: int = Field(
        256 * 1024,
        ge=4096,
        le=1 << 30,
        description="output that is stored while a job runs, bytes per second; more is counted and left out",
    )
    live_logs_max_bytes: int = Field(
        MIB,
        ge=64 * 1024,
        le=1 << 30,
        description="stored live output of a job, bytes; if it is more, the oldest is deleted",
    )
    live_logs_ttl_seconds: Positive = Field(
        3600, description="time for which Redis keeps the live output of a job, seconds"
    )
    live_logs_max_jobs: Positive = Field(
        16, description="jobs whose output a worker stores at the same time; more appear at their end only"
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

    capsules: Literal["failed", "all", "off"] = Field(
        "failed",
        description="which jobs leave a capsule in S3_USER_DATA_BUCKET, for `nanoagent replay` and `retry`: "
        "those without success, all, or none",
    )

    # --- code
    code_cache_dir: Path = Field(
        Path("/var/cache/nanoagent"), description="folder of code and built programs; workers may share it"
    )
    min_free_disk_mb: NotNegative = Field(
        256,
        description="free space that CODE_CACHE_DIR and DOCKER_WORK_DIR_ROOT must have on their disks, "
        "MiB; with less, the worker takes no jobs; 0: not checked",
    )
    code_cache_mb: Positive = Field(
        4096, description="size of the code cache, MiB; the program cache has the same size"
    )
    code_fresh_seconds: float = Field(
        1,
        ge=0,
        allow_inf_nan=False,
        description="time after which the worker asks S3 again whether code has changed, seconds; 0: it "
        "asks for every job",
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
    build_cache: Literal["auto", "never"] = Field(
        "auto",
        description="auto: a build of C++ or Go code compiles only the files that have changed since an "
        "earlier build of the same function; never: each build compiles all files",
    )

    failure_memory_seconds: float = Field(
        60,
        ge=0,
        le=86_400,
        allow_inf_nan=False,
        description="time for which the failure cache remembers failed builds, and code that kills its "
        "containers, seconds; 0: never",
    )

    # --- AI gateway
    ai_endpoint: BaseUrl | None = Field(
        None,
        description="model server of the AI gateway: an Ollama server, or a base URL as for the "
        "openai client",
    )
    ai_api_key: ModelKey | None = Field(
        None, description="key of the model server AI_ENDPOINT, if it requires one", repr=False
    )
    ai_upstreams: Upstreams | None = Field(
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
    ai_max_concurrent: Positive = Field(8, description="concurrent requests of a run to models")
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
        description="longest time to read the rest of an answer, for its token count, after the job has "
        "closed the connection, seconds",
    )
    ai_remote_tools: bool = Field(
        False,
        description="allow functions to use the tools of a model server: fetch URLs, search, run "
        "tools, read stored data",
    )
    ai_record: Literal["off", "store"] = Field(
        "off", description="store: upload the model requests of a run, and the answers, with its output files"
    )
    ai_replay: ExistingFolder | None = Field(
        None,
        description="folder of recordings made with AI_RECORD; they answer requests in place of model "
        "servers",
    )

    # --- network of runs
    network: NetworkPolicy = Field(
        NetworkPolicy.AI,
        description="none: no connections; ai: models, through the gateway; egress: models and the internet; "
        "a job can restrict this further (`network`)",
    )
    network_max_connections: Positive = Field(
        64,
        description="concurrent connections of a run, to the gateway and the internet; further "
        "connections wait",
    )
    egress_allow: HostPatterns = Field(
        "*",
        description="hosts that runs may connect to: names, *.suffixes, or * for all; separated by commas",
    )
    egress_deny: Networks = Field(
        "",
        description="networks (CIDR) that runs may not connect to, in addition to private ones; "
        "separated by commas",
    )
    egress_ports: Ports = Field(
        "80,443", description="TCP ports that runs may connect to; separated by commas"
    )
    egress_max_mb: Positive = Field(
        1024, description="data that a run may exchange with the internet, sent and received together, MiB"
    )

    # --- secrets
    secrets_allow: SecretRules = Field(
        "",
        description="secrets that functions may use in `env`: rules such as "
        "`shop-*=ssm:/prod/shop/**`, separated by commas; empty: none (docs/secrets.md)",
    )
    secrets_cache_seconds: NotNegative = Field(
        60, le=3600, description="how long the value of a secret is kept in memory, seconds; 0: not at all"
    )

    # --- self-test
    selftest_interval_seconds: NotNegative = Field(
        3600,
        description="interval of the self-test, seconds; the first one runs before the first job; 0: no "
        "self-test, not even the first",
    )

    # --- telemetry
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
    savings_runs: Positive = Field(
        1_000_000, description="number of runs for which the savings in a result are calculated"
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if problems := consistency.problems(self):
            raise ValueError("\n".join(problems))
        return self

    # --- values that follow from settings

    @property
    def min_max_receive_count(self) -> int:
        """The smallest `maxReceiveCount` that fits the setting MAX_ATTEMPTS, for the queue's redrive policy.

        It is larger than MAX_ATTEMPTS, because SQS also counts receipts that lead to no attempt. In a FIFO
        queue there are more of these: when a message is returned, later messages of its group are, too.
        """
        return (10 if self.sqs_queue_url.endswith(".fifo") else 2) * self.max_attempts

    @property
    def largest_job_mb(self) -> int:
        """The largest `memoryMb` of a job, MiB."""
        return self.max_memory_mb or min(10_240, self.worker_memory_mb)

    @property
    def job_defaults(self) -> JobDefaults:
        """The values of fields that a message leaves out."""
        return JobDefaults(
            s3_bucket=self.s3_code_bucket,
            model_id=self.ai_model,
            max_memory_mb=self.largest_job_mb,
            memory_mb=min(DEFAULT_MEMORY_MB, self.largest_job_mb),
            network=self.network,
            locale=self.locale,
        )

    @cached_property
    def tenant_regex(self) -> re.Pattern[str] | None:
        """TENANT_PATTERN, compiled."""
        return None if self.tenant_pattern is None else re.compile(self.tenant_pattern)

    @property
    def offers_reuse_of_imports(self) -> bool:
        """Whether a job may have `reuse: "imports"`.

        Never in containers that serve several functions: a package that was imported for one function has
        more ways to attack the container than a run (docs/adr/0037).
        """
        return self.function_reuse == "imports" and self.container_sharing in {"function", "never"}

    def cpus_for(self, memory_mb: int) -> float:
        """Return the CPUs of a job: in proportion to its memory, but at least CPU_MIN.

        It is never more than CPU_MAX or WORKER_CPUS.
        """
        highest = min(self.cpu_max or self.worker_cpus, self.worker_cpus)
        return min(max(memory_mb / self.cpu_memory_mb, self.cpu_min), highest)

    def most_cpus_for(self, memory_mb: int) -> float:
        """Return the CPUs that a job may use while CPUs are free.

        These are CPU_BURST times `cpus_for`, but at most CPU_MAX, or WORKER_CPUS if CPU_MAX is not set.
        """
        return min(self.cpus_for(memory_mb) * self.cpu_burst, self.cpu_max or self.worker_cpus)

    def image(self, runtime: Runtime) -> str:
        """Return the image of a runtime."""
        return str(getattr(self, f"docker_{runtime}_image"))

    def pool_size(self, runtime: Runtime) -> int:
        """Return the number of containers that are kept ready for a runtime."""
        return int(getattr(self, f"warm_pool_{runtime}_size"))

    @property
    def preloaded_modules(self) -> tuple[str, ...]:
        """The Python modules that every interpreter imports before a run."""
        return () if self.python_preload in {"auto", "none"} else tuple(self.python_preload.split(","))

    @property
    def upstreams(self) -> tuple[UpstreamSetting, ...]:
        """The model servers, in the order of their priority."""
        servers = () if self.ai_upstreams is None else parse_upstreams(self.ai_upstreams)
        if self.ai_endpoint is None:
            return servers
        return (*servers, UpstreamSetting(url=self.ai_endpoint, key=self.ai_api_key))

    @property
    def allowed_models(self) -> tuple[str, ...]:
        """The patterns of the models that functions may use."""
        return tuple(listed(self.ai_models))

    @property
    def named_models(self) -> tuple[str, ...]:
        """The models whose full names are in the settings, the default model first."""
        patterns = [*self.allowed_models, *(name for server in self.upstreams for name in server.models)]
        named = [pattern for pattern in patterns if not set(pattern) & set("*?[")]
        return tuple(dict.fromkeys([self.ai_model, *named]))

    @property
    def egress_hosts(self) -> tuple[str, ...]:
        """The patterns in EGRESS_ALLOW."""
        return tuple(listed(self.egress_allow))

    @property
    def egress_denied(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks in EGRESS_DENY."""
        return tuple(ipaddress.ip_network(network) for network in listed(self.egress_deny))

    @property
    def egress_port_numbers(self) -> tuple[int, ...]:
        """The ports in EGRESS_PORTS."""
        return tuple(int(port) for port in listed(self.egress_ports))

    @property
    def secret_rules(self) -> tuple[SecretRule, ...]:
        """The rules in SECRETS_ALLOW."""
        return parse_rules(self.secrets_allow)

    @property
    def secrets(self) -> list[str]:
        """The values that no log may show: secrets of the settings, and of the AWS SDK in the environment."""
        servers = self.upstreams
        urls = [self.sqs_queue_url, self.sqs_dlq_url, *(server.url for server in servers)]
        urls += [value for name, value in os.environ.items() if _URL_VARIABLES.search(name)]
        found = [self.redis_password, *(_password_of(url) for url in urls if url)]
        found += [server.key for server in servers]
        found += [os.environ.get(name) for name in _SECRET_VARIABLES]
        return [secret for secret in found if secret]


def _password_of(url: str) -> str | None:
    with suppress(ValueError):  # an invalid URL has no password
        return unquote(urlsplit(url).password or "")
    return None
