/* The restrictions that every pre-created process puts on itself, for good, before it becomes a program. */
#ifndef CONFINE_H
#define CONFINE_H

#include <stdint.h>

/* The user and group id of a run inside its sandbox. Outside, each container has a different one. */
#define RUN_USER 1000

struct __attribute__((packed)) confinement {
    uint64_t file_size_bytes; /* RLIMIT_FSIZE */
    uint32_t open_files;      /* RLIMIT_NOFILE */
    uint8_t shared;           /* the shared level: no namespaces, so also refuse objects that outlive a process */
};

/* Take from the calling process everything that a run must not have: its session, protection from the
 * out-of-memory killer, unlimited resources, capabilities and the ways to regain them, and system calls.
 * 0, or -1 with errno. In a sandbox, the listener of the process's filter is sent over its job socket,
 * with JOB_CONFINED (job.h). */
int confine(const struct confinement *confinement, int job_socket);

/* Take the capabilities alone; 0, or -1 with errno. */
int confine_capabilities(void);

#endif
