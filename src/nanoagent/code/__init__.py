"""From an object key to a folder of code that can be run, and to a program built from it.

Theory of operation
-------------------
::

    bucket, key ─► one conditional request ─► zip ─► sha256 ─► tree        (`cache.CodeCache`)
    digest of code, compiler, flags, image ─► builder ─► program           (`cache.ProgramCache`)

* A **tree** or **program** is named by a digest and never changes. Both caches keep theirs in a
  `store.DiskCache`: one folder, bounded in bytes, least recently used goes first, shared by any number of
  workers of one user on one machine.
* A user of an entry holds a **pin**: a shared `flock` on the entry's `meta` file. Who evicts takes the
  exclusive one, without waiting. The kernel drops the locks of a process that dies, so nothing is left
  pinned and nothing in use is removed, by whichever worker.
* An entry is built in a **workspace** that only its worker uses, and appears by one `rename`. Of two workers
  that build the same, the later finds the name taken and throws its own away. A dead worker's workspace is
  told by its lock, which nobody holds, and removed at the next start.
* Callers that want the same at the same time share one request or build (`single_flight`).
* Archives are **hostile** (`archive`): all entries are checked before one is written.

Read in this order: `cache`, `store`, `single_flight`, `archive`, `entries`, `layout`, `unpacking`,
`refusals`, `root`.
"""
