/* The supervisor's side of the zygote: a process of its own that has an interpreter ready and forks it into
 * sandboxes. It never sees code, input or output. Its own side is zygote_module.c, zygote.py. */
#ifndef ZYGOTE_H
#define ZYGOTE_H

#include "confine.h"
#include "interpreter.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct zygote_exit {
    int32_t pid;
    int32_t status; /* as from waitpid(2) */
    uint64_t user_us, system_us;
};

/* Start it with these modules (NUL-terminated, `length` bytes in all) and wait until it is ready. 0 when it did
 * not come up: programs are then started plainly. */
int zygote_start(const struct interpreter *interpreter, const char *modules, size_t length);
/* Kill it, if it runs. */
void zygote_stop(void);
/* Tell it of every process that was reaped elsewhere: it may have been the zygote. */
void zygote_note_reaped(pid_t pid);
/* Whether it runs. */
int zygote_runs(void);
/* Have it import more, unless what comes along is also in the folder. 0 when it must be started anew. */
int zygote_preload(const char *modules, size_t length, int folder);
/* Have it fork a process into the sandbox of that init; its number, or 0 when the zygote failed. */
pid_t zygote_fork(int init, const int ends[PARKED_END_COUNT], const struct confinement *confinement);
/* For poll(); -1 when it does not run. */
int zygote_fd(void);
/* An end that it has reported, without waiting; 0 when there is none. */
int zygote_has_reported(struct zygote_exit *end);
/* Wait for the end of that process, which is dead already. */
void zygote_await_exit(pid_t pid, struct zygote_exit *end);

#endif
