"""Units of memory and disk space."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024
"""The bytes of a mebibyte. Settings and fields whose names end in `_mb` or `Mb` are in mebibytes."""
