"""Fetches the code of functions, unpacks it, and keeps it on disk, with the programs that were built from it.

::

    bucket, key ─► one conditional request ─► zip ─► SHA-256 ─► pack           (`code_cache.CodeCache`)
    digest of code, compiler, flags and image ─► build ─► program        (`program_cache.ProgramCache`)

A pack is one file that has a whole tree (`pack`). Both caches keep their entries, packs or programs, in a
`disk_cache.DiskCache`:

* The name of an entry is a digest. The entry never changes. The cache is one folder with a limit in bytes; it
  evicts the least recently used entries. All workers of one user on one machine share it.
* A user of an entry holds a **pin**: a shared `flock` on the entry's file `meta`. Eviction takes an exclusive
  lock without waiting, and skips pinned entries. The kernel releases the locks of a process that dies. So no
  entry in use is removed, and no pin outlives its process.
* A worker prepares an entry in its own **workspace**, and publishes it with one `rename`. If two workers
  prepare the same entry, the later one discards its own. A worker that starts removes the workspaces of dead
  workers.
* Callers that want the same entry at the same time share one request or build (`single_flight`).

Modules:

* Byte code of Python code: `byte_code_cache` keeps it beside the trees; `byte_code` checks it.
* Caches: `code_cache` (with `code_index`, `fresh_trees` and `missing_code`), `program_cache`,
  `single_flight`.
* Entries on disk: `disk_cache`, `disk_entries`, `pin`, `workspace`, `disk_errors`.
* Untrusted zips: `archive` checks all entries before it writes a file. `zip_entries` reads names and kinds,
  `zip_tree` follows links, `unpacking` writes the pack, `refusals` has the rules.
* The unpacked code: `pack` has the layout and reads it. `entry_file` finds the file to run, `imports` guesses
  the libraries that it needs.

Read in this order: `code_cache`, `program_cache`, `disk_cache`, `disk_entries`, `archive` and the modules it
names.
"""
