"""The types of single settings, and their rules.

The message of each ValueError is the expected value. `loading` makes a sentence from this message.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field, ValidationInfo

from nanoagent.common import gateway_address
from nanoagent.config.secret_rules import parse_rules

KEY: Final = re.compile(r"[!#-\[\]-~]{1,4096}")
"""A key of a model server.

It is sent in a header. It has no character that JSON escapes, so that the worker can find it in logs and hide
it there.
"""

_URL: Final = re.compile(r"https?://[^/\s]+")
# The path of one call, which clients append to the base URL themselves.
_MODEL_CALL: Final = re.compile(
    r"/(?:(?:chat/)?completions|responses|embeddings|api/(?:generate|chat))/?(?:\?|$)"
)
_HOST_PATTERN: Final = re.compile(
    r"\*|(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE
)
_MAX_EGRESS_PORTS: Final = 14  # network.listening_sockets allows 16; the gateway and DNS take one each
_REMAPPED_IDS: Final = 65_536  # see container.engine
_LEAST_UIDS: Final = 10_000
# The path of a session's socket below the folder, with a worker ID of 40 characters; see
# container.work_directory.
_SOCKET_SUFFIX_LENGTH: Final = len("/") + 40 + len("/slots/0000000000/agent.sock")
_SOCKET_PATH_MAX: Final = 107  # sockaddr_un.sun_path without its NUL, unix(7)


def listed(value: str) -> list[str]:
    """Split a list at its commas, and drop spaces and empty parts."""
    return [part.strip() for part in value.split(",") if part.strip()]


def expected_base_url(url: str) -> str | None:
    """Return which value is expected if the base URL of a model server is wrong; None if it is right."""
    if not _URL.match(url):
        return "a URL that starts with http:// or https://"
    if (call := _MODEL_CALL.search(url)) is None:
        return None
    return f"the base URL of the model server, without {call[0].rstrip('?/')}"


def _check_url(value: str) -> str:
    if not _URL.match(value):
        raise ValueError("a URL that starts with http:// or https://")
    return value


def _check_base_url(value: str) -> str:
    if (expected := expected_base_url(value)) is not None:
        raise ValueError(expected)
    return value


def _check_bucket(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value):
        raise ValueError("a bucket name: 3 to 63 of a-z 0-9 . -, a letter or digit at both ends")
    return value


def _check_key(value: str) -> str:
    if not KEY.fullmatch(value):
        raise ValueError(
            "a key: 1 to 4096 characters of printable ASCII, without spaces, double quotes and backslashes"
        )
    return value


def _check_host_patterns(value: str) -> str:
    for host in listed(value):
        if not _HOST_PATTERN.fullmatch(host):
            raise ValueError(
                "host names such as api.example.com, *.example.com or *, separated by commas; "
                f"{host!r} is not one"
            )
    return value


def _check_owner_pattern(value: str) -> str:
    try:
        groups = re.compile(value).groups
    except re.error as exc:
        raise ValueError(f"a regular expression; {exc}") from None
    if groups != 1:
        raise ValueError(f"a regular expression with one group, which is the owner; it has {groups} groups")
    return value


def _check_networks(value: str) -> str:
    for network in listed(value):
        try:
            ipaddress.ip_network(network)
        except ValueError as exc:  # its message has the value
            raise ValueError(f"networks such as 10.0.0.0/8, separated by commas; {exc}") from None
    return value


def _check_secret_rules(value: str) -> str:
    parse_rules(value)
    return value


def _check_ports(value: str) -> str:
    ports = listed(value)
    for port in ports:
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ValueError(f"ports: numbers from 1 to 65535, separated by commas; {port!r} is not one")
        if int(port) == gateway_address.PORT:
            raise ValueError(f"ports other than {port}, which the gateway uses in the network of a run")
    if len(set(map(int, ports))) != len(ports) or len(ports) > _MAX_EGRESS_PORTS:
        raise ValueError(f"at most {_MAX_EGRESS_PORTS} ports, each once")
    return value


def _check_folder_exists(value: Path) -> Path:
    if not value.is_dir():
        raise ValueError("a folder that exists")
    return value


def _check_socket_paths_fit(value: Path) -> Path:
    path = value.absolute()
    longest = _SOCKET_PATH_MAX - _SOCKET_SUFFIX_LENGTH
    if len(os.fsencode(path)) > longest:
        raise ValueError(f"a path of at most {longest} bytes: Unix sockets are made below it")
    return path


def _check_uid_base(value: int) -> int:
    # A base below 65,536 is for a Docker that remaps user IDs. Then the user IDs of containers are below
    # 65,534 (`container.engine`), and there must be enough of them for all containers.
    if _REMAPPED_IDS - _LEAST_UIDS < value < _REMAPPED_IDS:
        raise ValueError(f"at most {_REMAPPED_IDS - _LEAST_UIDS}, or at least {_REMAPPED_IDS}")
    return value


# --- files for TLS


def _check_readable(value: Path | None, info: ValidationInfo) -> Path | None:
    if value is None:
        return None
    if info.data.get("redis_tls") is False:
        raise ValueError("REDIS_TLS=true as well; without TLS this file has no effect")
    try:
        value.read_bytes()
    except OSError as exc:
        raise ValueError(f"a file that this user may read ({exc.strerror})") from exc
    return value


def _check_authorities(value: Path | None) -> Path | None:
    if value is not None:
        try:
            ssl.create_default_context(cafile=value)
        except ssl.SSLError as exc:
            raise ValueError("a file of certificates in PEM (-----BEGIN CERTIFICATE-----)") from exc
    return value


def _check_certificate_fits_key(value: Path | None, info: ValidationInfo) -> Path | None:
    key = info.data.get("redis_tls_key_file")
    if value is None:
        if key is not None:
            raise ValueError("the PEM file of the certificate that belongs to REDIS_TLS_KEY_FILE")
        return None
    try:
        ssl.create_default_context().load_cert_chain(value, key, password=_refuse_encrypted_key)
    except (ssl.SSLError, ValueError) as exc:
        raise ValueError(
            "a PEM file with the certificate for the private key in REDIS_TLS_KEY_FILE; the key must not "
            "be encrypted"
        ) from exc
    return value


def _refuse_encrypted_key() -> str:
    """Raise an error. Without this function, OpenSSL would ask for the key's password at the terminal."""
    raise ValueError("the key is encrypted")


# --- the types

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Url = Annotated[str, AfterValidator(_check_url)]
BaseUrl = Annotated[str, AfterValidator(_check_base_url)]
Bucket = Annotated[str, AfterValidator(_check_bucket)]
ModelKey = Annotated[str, AfterValidator(_check_key)]
HostPatterns = Annotated[str, AfterValidator(_check_host_patterns)]
OwnerPattern = Annotated[str, AfterValidator(_check_owner_pattern)]
Networks = Annotated[str, AfterValidator(_check_networks)]
Ports = Annotated[str, AfterValidator(_check_ports)]
SecretRules = Annotated[str, AfterValidator(_check_secret_rules)]
ExistingFolder = Annotated[Path, AfterValidator(_check_folder_exists)]
SocketFolder = Annotated[Path, AfterValidator(_check_socket_paths_fit)]
UidBase = Annotated[int, AfterValidator(_check_uid_base)]

# The rules allow None. But if the certificate file is None, `_check_certificate_fits_key` refuses a key file.
TlsFile = Annotated[Path | None, AfterValidator(_check_readable)]
AuthoritiesFile = Annotated[TlsFile, AfterValidator(_check_authorities)]
CertificateFile = Annotated[TlsFile, AfterValidator(_check_certificate_fits_key)]
