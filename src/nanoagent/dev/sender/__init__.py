"""The sender's commands, for people and scripts: `nanoagent send`, `result` and `cancel`.

The modules in the order of their work::

    selection ─► package ─► message ─► delivery ─► command
    which files  zip,       SQS body   S3, SQS,    output,
                 digest                Redis       exit codes

The code's object key contains the digest of its contents. Two senders with folders of the same name therefore
never replace each other's code, and the code of a job does not change after the job was sent.
"""

from nanoagent.dev.sender.package import pack

__all__ = ["pack"]
