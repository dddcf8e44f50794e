"""The sending end of the queue, for people and scripts: `nanoagent send`, `result` and `cancel`.

The way of a function from a folder to its result::

    selection ─► package ─► message ─► delivery ─► command
    which files  zip,       SQS body   S3, SQS,    what the person sees,
                 digest                Redis       exit codes

The code's object key contains the digest of its contents. Two senders with folders of the same name therefore
never replace each other's code, and what a job runs does not change after it was sent.
"""

from nanoagent.sender.package import pack

__all__ = ["pack"]
