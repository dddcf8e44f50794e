"""The errors of msgspec for documents from jobs and model servers, which may be invalid or hostile."""

from __future__ import annotations

from typing import Final

import msgspec

UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""A document is not JSON, has another format, is not UTF-8, or is nested too deeply."""
