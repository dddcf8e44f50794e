/* What every process that is about to become a run's program does to itself, for good. */
#ifndef CONFINE_H
#define CONFINE_H

#include <stdint.h>

/* The user and group id of a run inside its sandbox. Outside, each container has a different one. */
#define RUN_USER 1000

struct __attribute__((packed)) confinement {
    uint64_t file_size_bytes; /* RLIMIT_FSIZE */
    uint32_t open_files;      /* RLIMIT_NOFILE */
    uint8_t shared;           /* level L1: no namespaces of its own, so none of what outlives a process */
};

/* Give up everything a run must not have: session, preference with the out-of-memory killer, resource limits,
 * capabilities and the way back to them, system calls. 0, or -1 with errno.
 * In a sandbox, the listener of its filter is sent to `job`, with one byte CONFINED (netlink.h). */
int confine(const struct confinement *confinement, int job);
#define CONFINED 'n'

/* The capabilities alone. */
int confine_capabilities(void);

#endif
