"""What the images have: tests/integration/test_image_facts.py compares this table with the images."""

from __future__ import annotations

from typing import Final

PYTHON: Final = (3, 13)
NODE: Final = 20
NODE_MODULES: Final = 115
"""The number of the interface for addons (NODE_MODULE_VERSION)."""

GLIBC: Final = (2, 41)

PYTHON_MODULES: Final = frozenset(
    {
        *("numpy", "pandas", "PIL", "requests", "httpx", "ai_client"),
        *("anyio", "certifi", "chardet", "charset_normalizer", "dateutil", "h11", "httpcore"),
        *("idna", "pytz", "sniffio", "urllib3"),
    }
)
"""Modules of the Python image that are not in the standard library."""

MODULES_NOT_OFFERED: Final = frozenset({"tkinter", "_tkinter", "idlelib", "turtle", "ensurepip"})
"""Modules of the standard library that Debian has in other packages than python3."""

MODULES_REMOVED: Final = frozenset(
    {
        *("distutils", "imp", "asynchat", "asyncore", "smtpd", "cgi", "cgitb", "crypt", "telnetlib", "pipes"),
        *("nntplib", "lib2to3", "imghdr", "sndhdr", "uu", "xdrlib", "aifc", "audioop", "chunk", "msilib"),
        *("nis", "ossaudiodev", "spwd", "sunau", "mailcap"),
    }
)
"""Modules that Python 3.12 and 3.13 have removed."""
