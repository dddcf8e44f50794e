"""Finds the owner of a job's function, for CONTAINER_SHARING=tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoagent.container.policy import Owner, OwnerSource

if TYPE_CHECKING:
    import re

    from nanoagent.model.job import Job


def owner_of(job: Job, pattern: re.Pattern[str] | None) -> Owner | None:
    """Return the owner of a job's function; None if it is unknown.

    The field `tenantId` of the job comes first. Otherwise the pattern is matched with the start of `s3Key`,
    then of `functionId`, and its group is the owner. Owners from different sources, and from keys in
    different buckets, are different, even if their names are equal.

    Args:
        job: The job.
        pattern: TENANT_PATTERN, with one group.
    """
    if job.tenant_id is not None:
        return Owner(OwnerSource.FIELD, job.tenant_id)
    if pattern is None:
        return None
    if (found := pattern.match(job.s3_key)) is not None and found[1]:
        return Owner(OwnerSource.KEY, found[1], job.s3_bucket)
    if (found := pattern.match(job.function_id)) is not None and found[1]:
        return Owner(OwnerSource.FUNCTION_ID, found[1])
    return None
