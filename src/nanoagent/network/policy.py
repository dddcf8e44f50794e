"""Decides which names and addresses a run may reach. Pure functions."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

EVERYTHING_PUBLIC: Final = "*"
MAX_NAME_CHARACTERS: Final = 253  # RFC 1035, section 3.1, without the label of the root
# Letters, digits and hyphens (RFC 1123), and underscores, which some hosts use although no RFC allows them.
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# If the last label is a number, inet_aton(3) and browsers read the name as an IPv4 address: 0x7f.1, 127.1
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Multicast, and the networks that IANA lists as not globally reachable
# (iana.org/assignments/iana-ipv4-special-registry). ipaddress.is_global alone does not suffice: its result
# differs between versions of Python.
_NOT_PUBLIC_4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # networks of carriers; metadata on Alibaba Cloud
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; metadata on most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # metadata on Oracle Cloud
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's agent and resolver, although the address is in a public range
    )
)
# Only addresses that are allocated as global unicast can be public. This excludes loopback, link-local,
# site-local and unique local addresses (AWS's metadata is fd00:ec2::254), IPv4-mapped addresses, and NAT64
# (64:ff9b::/96 and 64:ff9b:1::/48).
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # for protocols: Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4, which contains an IPv4 address
        "3fff::/20",
    )
)


def is_public(address: str, denied: Iterable[IPNetwork] = ()) -> bool:
    """Whether an address belongs to the internet, not to the host, a private network or a cloud's services.

    Args:
        address: A numeric address, as getaddrinfo(3) returns it.
        denied: Further networks that are not allowed (EGRESS_DENY).
    """
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(number, ipaddress.IPv6Address):
        if number.scope_id is not None or number not in _GLOBAL_UNICAST:
            return False
        not_public: Sequence[IPNetwork] = _NOT_PUBLIC_6
    else:
        not_public = _NOT_PUBLIC_4
    if any(number in network for network in not_public) or not number.is_global or number.is_multicast:
        return False
    return not any(number.version == network.version and number in network for network in denied)


def host_name(name: str) -> str | None:
    """Return the normal form of a name; None if no host in the internet can have this name.

    Args:
        name: A name in ASCII from a query or a setting. It may end with a dot.
    """
    normal = name.lower().removesuffix(".")
    labels = normal.split(".")
    if len(normal) > MAX_NAME_CHARACTERS or len(labels) < 2 or _NUMBER.fullmatch(labels[-1]):
        return None
    return normal if all(_LABEL.fullmatch(label) for label in labels) else None


class AllowedHosts:
    """The names that runs may reach.

    Args:
        patterns: The patterns of EGRESS_ALLOW. A pattern is a host name, `*.example.com` for all names below
            example.com but not for example.com itself, or `*` for all names.

    Raises:
        ValueError: A pattern is invalid; the message names it.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._everything = False
        self._names: set[str] = set()
        self._suffixes: set[str] = set()
        for pattern in patterns:
            if pattern == EVERYTHING_PUBLIC:
                self._everything = True
                continue
            name = host_name(pattern.removeprefix("*."))
            if name is None:
                raise ValueError(
                    f"{pattern!r} is not a host name; expected api.example.com, *.example.com or *"
                )
            (self._suffixes if pattern.startswith("*.") else self._names).add(name)

    def allows(self, name: str) -> bool:
        """Whether runs may reach a name. The name must be in the normal form that `host_name` returns."""
        if self._everything or name in self._names:
            return True
        labels = name.split(".")
        return any(".".join(labels[start:]) in self._suffixes for start in range(1, len(labels)))
