"""Names the capsule of a job in its result, and keeps the capsule after the publication."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nanoagent.jobs.capsules import AnsweredJob
from nanoagent.model import capsule

if TYPE_CHECKING:
    from nanoagent.jobs.capsules import Capsules
    from nanoagent.model.result import Result
    from nanoagent.results.base import Claim
    from nanoagent.worker.state import DeliveryState


def naming_capsule(result: Result) -> Result:
    """Return the result with the key of its capsule."""
    return msgspec.structs.replace(result, capsule=capsule.key_of(result.request_id))


def keep(capsules: Capsules | None, state: DeliveryState, claim: Claim, result: Result) -> None:
    """Begin to store the capsule of a published result, if there are capsules. Does not wait for it.

    Args:
        capsules: Stores capsules; None: off.
        state: The state of the delivery.
        claim: The claim under which the result was published.
        result: The result, with whole texts.
    """
    if capsules is None:
        return
    answered = AnsweredJob(
        body=state.delivery.body,
        job=state.job,
        attempt=state.attempt,
        result=result,
        fencing_token=claim.token,
    )
    capsules.keep(answered)
