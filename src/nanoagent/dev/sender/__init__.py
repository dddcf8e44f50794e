"""The commands of senders: `nanoagent send`, `result` and `cancel`.

The modules, in the order in which `send` uses them::

    selection ─► package ─► message ─► delivery ─► command
    which files  zip,       SQS body   S3, SQS,    output,
                 digest                Redis       exit codes

The object key of the code contains the digest of the code. So two senders with folders of the same name do
not replace each other's code, and the code of a job does not change after the job was sent.

`ignorefile` reads `.nanoagentignore` for `selection`. `dev` finds the settings of a running `make dev`, and
`language` the language of the shell. `progress` shows an upload on a terminal. `stages` has the exit codes,
and the texts for jobs whose sender stops waiting.
"""

from nanoagent.dev.sender.package import pack

__all__ = ["pack"]
