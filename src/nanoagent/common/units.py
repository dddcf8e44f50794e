"""Units of memory and disk space."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024
"""Bytes in a mebibyte. Settings and messages that end in `_mb` or `Mb` count mebibytes."""
