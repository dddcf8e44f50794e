"""A call on its way to a model server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanoagent.ai.budgets import Reservation
    from nanoagent.ai.calls import Call
    from nanoagent.ai.recording import RecordedCall
    from nanoagent.ai.translation.requests import Translation
    from nanoagent.ai.upstreams import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingCall:
    """A call on its way to a model server.

    Attributes:
        call: The call of the job.
        upstream_call: The call that the model server receives: `call`, or its translation.
        translation: The translation; None if the calls are the same.
        server: The model server.
        prompt_tokens: The estimated tokens of the prompt.
        reservation: The tokens that are reserved for the call.
        record: The record of the call; None if it is not recorded.
        begun_at: The start of the call, by `time.perf_counter`, in seconds.
    """

    call: Call
    upstream_call: Call
    translation: Translation | None
    server: Upstream
    prompt_tokens: int
    reservation: Reservation
    record: RecordedCall | None
    begun_at: float
