"""Builds what runs connect to: the gateway to model servers, and the egress filter to the internet."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from nanoagent.ai import inspection
from nanoagent.ai.gateway import Gateway
from nanoagent.ai.limits import GatewayLimits, RunLimits
from nanoagent.ai.refusals import Api
from nanoagent.ai.replay import Replay
from nanoagent.ai.upstreams import HttpUpstream, Upstreams, new_session
from nanoagent.common.units import MIB
from nanoagent.host import resources
from nanoagent.jobs.admission_rules import Budget
from nanoagent.model.errors import ConfigError
from nanoagent.model.job import NetworkPolicy
from nanoagent.network.egress import Egress
from nanoagent.network.listeners import Network
from nanoagent.network.policy import AllowedHosts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AsyncExitStack
    from pathlib import Path

    import aiohttp

    from nanoagent.ai.upstreams import Upstream
    from nanoagent.config import Settings
    from nanoagent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


async def open_network(
    settings: Settings, metrics: Metrics, opened: AsyncExitStack, descriptors: int
) -> Network:
    """Open the network of runs, with the connections that the setting NETWORK allows.

    Args:
        settings: The settings.
        metrics: Counts connections and requests.
        opened: The exit stack that closes the network.
        descriptors: The limit on file descriptors.
    """
    gateway, egress = None, None
    if settings.network.allows(NetworkPolicy.AI):
        gateway = await opened.enter_async_context(ai_gateway(settings, metrics))
    if settings.network.allows(NetworkPolicy.EGRESS):
        hosts = AllowedHosts(settings.egress_hosts)
        egress = Egress(hosts, settings.egress_denied, settings.egress_max_mb * MIB, metrics.worker.egress)
        opened.callback(egress.close)
    network = Network(
        settings.network,
        gateway,
        egress,
        settings.egress_port_numbers,
        max_connections_per_run(settings, descriptors),
    )
    opened.callback(network.close)
    return network


def max_connections_per_run(settings: Settings, descriptors: int) -> int:
    """Return NETWORK_MAX_CONNECTIONS, or less if concurrent runs could use up the file descriptors.

    Args:
        settings: The settings.
        descriptors: The limit on file descriptors.
    """
    if settings.network is NetworkPolicy.NONE:
        return settings.network_max_connections
    smallest_mb = settings.job_defaults.memory_mb
    total = Budget.of(settings.worker_memory_mb, settings.worker_cpus)
    runs = Budget.of(smallest_mb, settings.cpus_for(smallest_mb)).times_in(total)
    most = max(1, resources.descriptor_plan(descriptors, 0).connections // max(1, runs))
    if most < settings.network_max_connections:
        log.warning(
            "connections of a run limited by file descriptors", connections=most, descriptors=descriptors
        )
    return min(most, settings.network_max_connections)


@asynccontextmanager
async def ai_gateway(settings: Settings, metrics: Metrics) -> AsyncIterator[Gateway]:
    """Open the gateway to the model servers of the settings.

    Raises:
        ConfigError: The recordings in AI_REPLAY cannot be read.
    """
    limits = GatewayLimits(
        run=RunLimits(
            tokens=settings.ai_max_tokens,
            requests=settings.ai_max_requests,
            concurrent=settings.ai_max_concurrent,
            bytes=settings.ai_max_bytes,
        ),
        function_tokens_per_minute=settings.ai_function_tokens_per_minute,
        request_bytes=settings.ai_max_request_bytes,
        timeout_s=settings.ai_timeout_seconds,
        drain_s=settings.ai_drain_seconds,
        remote_tools=settings.ai_remote_tools,
    )
    session = new_session()
    try:
        servers: list[Upstream] = [server.upstream for server in model_servers(settings, session)]
        if settings.ai_replay is not None:
            servers = [_replay(settings.ai_replay)]
        yield Gateway(Upstreams(tuple(servers), settings.allowed_models), limits, metrics)
    finally:
        await session.close()


def model_servers(settings: Settings, session: aiohttp.ClientSession) -> list[inspection.Server]:
    """Make clients of the model servers, in the order of their priority."""
    servers = []
    for number, setting in enumerate(settings.upstreams, 1):
        is_endpoint = settings.ai_endpoint is not None and number == len(settings.upstreams)
        api = None if setting.api == "auto" else Api(setting.api)
        servers.append(
            inspection.Server(
                upstream=HttpUpstream(session, setting.url, setting.models, api=api, key=setting.key),
                api=api,
                setting="AI_ENDPOINT" if is_endpoint else f"AI_UPSTREAMS, entry {number}",
                key_setting="AI_API_KEY" if is_endpoint else f"the key of entry {number} in AI_UPSTREAMS",
                has_key=setting.key is not None,
            )
        )
    return servers


async def inspect_models(settings: Settings) -> list[inspection.Inspected]:
    """Ask each model server for its models. With AI_REPLAY no server is asked."""
    if settings.ai_replay is not None:
        return [inspection.Inspected("AI_REPLAY is set: recordings answer, and no model server is asked")]
    session = new_session()
    try:
        servers = model_servers(settings, session)
        return await inspection.inspect(servers, settings.allowed_models, settings.ai_model)
    finally:
        await session.close()


def _replay(folder: Path) -> Replay:
    try:
        return Replay(sorted(folder.rglob("*.jsonl")))
    except (OSError, ValueError) as exc:
        raise ConfigError([f"AI_REPLAY: {exc}"]) from exc
