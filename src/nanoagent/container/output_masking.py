"""Hides the values of secrets in the collected output of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nanoagent.model.result import Refusal

if TYPE_CHECKING:
    from nanoagent.secrets.masking import Mask
    from nanoagent.supervisor.output import Captured, Collected


def hide_secrets(collected: Collected, mask: Mask) -> None:
    """Hide the values in stdout, stderr, and the names of files that are not uploaded.

    The error message and the hint are made from stderr afterwards. The output files are not changed.
    """
    collected.stdout = _masked(collected.stdout, mask)
    collected.stderr = _masked(collected.stderr, mask)
    collected.refused = [Refusal(mask.hide(refusal.path), refusal.reason) for refusal in collected.refused]


def _masked(captured: Captured, mask: Mask) -> Captured:
    if not captured.truncated_bytes:
        return replace(captured, head=mask.hide(captured.head))
    head, tail = mask.hide_parts(captured.head, captured.tail)
    return replace(captured, head=head, tail=tail)
