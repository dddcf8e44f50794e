"""Definitions of metrics in one registry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from nanoagent.common.units import MIB

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# From the time to create a sandbox (under 1 ms) to an hour. One bucket ends at the default timeout, 300 s.
_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0),
)

MEMORY_BYTES: Final = tuple(float(MIB * 2**exponent) for exponent in range(2, 15))
"""Buckets for memory sizes, in bytes: powers of two from 4 MiB to 16 GiB."""


class Definitions:
    """Defines metrics in a registry.

    Args:
        registry: The registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Define a metric that only grows."""
        return Counter(name, meaning, labels, registry=self._registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """Define a metric with a present value."""
        return Gauge(name, meaning, labels, registry=self._registry)

    def histogram(
        self, name: str, meaning: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        """Define a metric of a distribution; the default buckets are for durations in seconds."""
        return Histogram(name, meaning, labels, registry=self._registry, buckets=buckets)
