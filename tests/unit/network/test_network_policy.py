"""Which names and addresses may be reached: tables of those that are known to be tried."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoagent.model.job import NetworkPolicy
from nanoagent.network.policy import AllowedHosts, host_name, is_public

PUBLIC = (
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "52.95.110.1", "93.184.215.14", "99.255.255.255"),
    *("100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.1", "169.253.255.255", "169.255.0.0"),
    *("172.15.255.255", "172.32.0.0", "192.0.1.0", "192.167.255.255", "192.169.0.0", "198.17.255.255"),
    *("198.20.0.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "168.63.129.15"),
    *("2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::200e", "2600::", "3ffe:ffff::1"),
)
NOT_PUBLIC = (
    # this host, this network, nobody
    *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.64.0.1", "127.255.255.254", "::", "::1"),
    # private, of carriers, link-local
    *("10.0.0.0", "10.255.255.255", "172.16.0.1", "172.17.0.1", "172.31.255.255", "192.168.0.1"),
    *("192.168.255.255", "100.64.0.0", "100.127.255.255", "169.254.0.1", "169.254.255.255"),
    *("fc00::1", "fd12:3456:789a::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "2606:4700::1%1"),
    # metadata of clouds: AWS and most others, AWS by IPv6, AWS's containers, Azure, Alibaba, Oracle
    *("169.254.169.254", "fd00:ec2::254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    # protocols, documentation, benchmarking, 6to4's relays
    *("192.0.0.8", "192.0.2.1", "198.51.100.7", "203.0.113.255", "198.18.0.1", "198.19.255.255"),
    *("192.88.99.1", "2001:db8::1", "3fff::1", "2001:2::1", "2001:10::1", "100::1", "5f00::1"),
    # multicast, reserved, broadcast
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "ff02::1", "ff0e::1"),
    # an IPv4 address within: mapped, compatible, NAT64, 6to4, Teredo
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:0:7f00:1::"),
    # no address at all: what getaddrinfo(3) never says, and what inet_aton(3) would take for one
    *(
        "",
        "localhost",
        "0x7f.1",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "1.1.1.1 ",
        "1.1.1",
        "[::1]",
        "8.8.8.8/32",
    ),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_strangers_address_in_the_internet_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_any_other_address_is_not(address):
    assert not is_public(address)


@given(number=st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_as_public_as_python_says_at_most(number):
    address = ipaddress.IPv4Address(number)
    assert not is_public(str(address)) or (address.is_global and not address.is_multicast)
    assert not is_public(f"::ffff:{address}")
    assert not is_public(f"64:ff9b::{address}")


@given(number=st.integers(0, 2**128 - 1))
def test_an_ipv6_address_outside_of_global_unicast_is_never_public(number):
    address = ipaddress.IPv6Address(number)
    assert not is_public(str(address)) or number >> 125 == 1


def test_networks_of_ones_own_can_be_denied_besides():
    denied = (ipaddress.ip_network("52.95.0.0/16"), ipaddress.ip_network("2606:4700::/32"))
    assert not is_public("52.95.110.1", denied)
    assert not is_public("2606:4700:4700::1111", denied)
    assert is_public("52.96.0.1", denied)


# --- names


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("api.example.com", "api.example.com"),
        ("API.Example.COM.", "api.example.com"),
        ("_under.example.com", "_under.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a-b.c0", "a-b.c0"),
    ],
)
def test_a_hosts_name_is_compared_without_case_and_final_dot(name, compared):
    assert host_name(name) == compared


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "localhost", "redis", "com", ".example.com", "a..example.com", "example.com.."),
        *("127.0.0.1", "127.1", "0x7f.1", "a.0x7f", "1.2.3.0x04", "0177.0.0.1", "169.254.169.254."),
        *("-a.example.com", "a-.example.com", "a b.example.com", "a/b.example.com", "a@b.example.com"),
        *("a\\.b.example.com", "a\0.example.com", "bücher.example", "[::1].example.com", "*.example.com"),
        *(f"{'a' * 64}.example.com", ".".join(["a" * 60] * 5), "example.com\n", "exa%6dple.com"),
    ],
)
def test_what_can_be_no_hosts_name_in_the_internet_is_none(name):
    assert host_name(name) is None


@pytest.mark.parametrize(
    ("patterns", "allowed", "refused"),
    [
        (["*"], ["a.b", "api.example.com"], []),
        (["api.example.com"], ["api.example.com"], ["example.com", "x.api.example.com", "aapi.example.com"]),
        (
            ["*.example.com"],
            ["a.example.com", "a.b.example.com"],
            ["example.com", "aexample.com", "example.com.evil.org"],
        ),
        (
            ["API.example.com.", "*.S3.amazonaws.com"],
            ["api.example.com", "b.s3.amazonaws.com"],
            ["s3.amazonaws.com"],
        ),
        ([], [], ["example.com"]),
    ],
)
def test_names_are_allowed_by_what_they_are_called(patterns, allowed, refused):
    hosts = AllowedHosts(patterns)
    assert [name for name in allowed + refused if hosts.allows(name)] == allowed


@pytest.mark.parametrize(
    "pattern", ["", "localhost", "https://a.example", "a.example:443", "*a.example", "a.*.example"]
)
def test_a_pattern_that_is_none_is_named(pattern):
    with pytest.raises(ValueError, match="is not a host name; expected"):
        AllowedHosts([pattern])


# --- policies


def test_a_policy_allows_itself_and_what_is_narrower():
    none, ai, egress = NetworkPolicy
    assert [[wide.allows(narrow) for narrow in NetworkPolicy] for wide in (none, ai, egress)] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
