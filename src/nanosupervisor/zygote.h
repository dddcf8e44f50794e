/* The supervisor's side of the zygote. The zygote is a process whose interpreter has already started, or has at least
 * loaded its libraries. It forks a process into each sandbox, and never sees code, input or output of a run. Its own
 * side is zygote_server.c, with zygote_module.c and zygote.py for Python, and docker/nodejs/zygote.c for Node.js. */
#ifndef ZYGOTE_H
#define ZYGOTE_H

#include "confine.h"
#include "interpreter.h"
#include "job.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The end of a process that the zygote has forked. */
struct zygote_exit {
    pid_t pid;
    int status; /* as from waitpid(2) */
    uint64_t user_us, system_us;
};

/* Start the zygote, let it import modules (NUL-terminated names, `length` bytes together), and wait until it
 * is ready. If that fails, zygote_is_running() returns 0. */
void zygote_start(const struct interpreter *interpreter, const char *modules, size_t length);
/* Whether the zygote has started and is not known to have ended. */
int zygote_is_running(void);
/* Call this after another file's code has reaped a process, because it may have been the zygote. */
void zygote_note_reaped(pid_t pid);
/* Let the zygote import more modules for the code in an open directory. Return 0 if the zygote must be started
 * again, because an import failed or a module has the name of a file of the code. */
int zygote_preload(const char *modules, size_t length, int directory);
/* Ask the zygote to fork a process into the sandbox whose init has this pidfd. Return the ticket of the request. */
unsigned zygote_request_fork(int init_pidfd, const int process[PROCESS_DESCRIPTORS],
                             const struct confinement *confinement);
/* Whether the request with this ticket has been answered. Then `pid` is the process's number, or 0 if the fork has
 * failed. */
int zygote_has_forked(unsigned ticket, pid_t *pid);
/* Wait for the answer, and return the process's number, or 0 if the fork has failed. */
pid_t zygote_await_fork(unsigned ticket);
/* The zygote's socket, for poll(); -1 if it is not running. */
int zygote_fd(void);
/* Receive the messages that have arrived. Call this when the socket is readable. If the zygote has ended,
 * zygote_is_running() then returns 0. */
void zygote_receive(void);
/* Take the end of a process if the zygote has reported it; 0 if it has not. */
int zygote_take_exit(pid_t pid, struct zygote_exit *end);
/* Wait until the zygote has reported the end of a process that was killed. */
void zygote_await_exit(pid_t pid, struct zygote_exit *end);

#endif
