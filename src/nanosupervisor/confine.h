/* The restrictions that a process puts on itself before it becomes a run's program. It cannot undo them. */
#ifndef CONFINE_H
#define CONFINE_H

#include <stdint.h>

/* The user and group id of a run inside its sandbox. Outside, each container has a different one. */
#define RUN_USER 1000

struct __attribute__((packed)) confinement {
    uint64_t file_size_bytes; /* RLIMIT_FSIZE */
    uint32_t open_files;      /* RLIMIT_NOFILE */
    uint8_t shared;           /* the shared level: no namespaces, so also refuse IPC objects that outlive a process */
    uint8_t importer;         /* the importer: it may also enter the sandboxes of its runs (importer.h) */
};

/* Take from the calling process everything that a run must not have: the session of its parent, protection
 * from the out-of-memory killer, unlimited resources, capabilities and the ways to regain them, and system
 * calls. Return 0, or -1 with errno. In a sandbox, send the listener of the process's filter over its job
 * socket, with JOB_CONFINED (job.h). */
int confine(const struct confinement *confinement, int job_socket);

/* Take only the capabilities; 0, or -1 with errno. */
int confine_capabilities(void);
/* The same as confine(), for a process that a confined importer has forked: it has already the importer's limits and
 * filter. */
int confine_fork(void);

#endif
