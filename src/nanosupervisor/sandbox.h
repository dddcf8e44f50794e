/* The inner wall: for each run a fresh set of namespaces and mounts, made by an unprivileged process.
 *
 * A sandbox is made ahead of its run and waits: its init, process 1 of its process namespace, and one parked
 * process that reads its job from descriptor 3 (struct job). It ends when its init is killed; processes, mounts,
 * IPC and sockets go with it, and there is nothing to wipe. */
#ifndef SANDBOX_H
#define SANDBOX_H

#include "confine.h"
#include "listening.h"
#include "interpreter.h"
#include "tree.h"

#include <stddef.h>
#include <sys/types.h>

/* What a parked process is sent: this, then `length` bytes of NUL-terminated strings, arguments first. */
struct __attribute__((packed)) job {
    uint32_t length;
    uint32_t argument_count;
    uint32_t environment_count;
};

struct sandbox {
    pid_t init;       /* in the container's numbers; 0: there is no sandbox */
    int process;      /* a pidfd of it */
    int control;      /* to init */
    int job;          /* to the parked process */
    int in;           /* its standard input, to be written and closed */
    int out, err;     /* what it prints */
    pid_t program;    /* of a zygote: the parked process, in the container's numbers; else 0 */
    struct tree tree; /* its places */
    struct listening_sockets listening; /* in its network; whoever opened it hands them over */
};

/* How much a run may write to its working directory, and how many files; set before the first sandbox is made. */
extern uint64_t sandbox_work_bytes, sandbox_work_files;
/* The namespaces of a sandbox, as flags of clone(2). */
extern const unsigned sandbox_namespaces;

/* Try everything once, in a process of its own; what failed, as text, when it cannot be had. */
int sandbox_is_possible(char *why, size_t room);
/* Once, for good: the supervisor's own user and mount namespace, in which it may make sandboxes. */
void sandbox_enter(void);
/* Make one. Exits when that fails: it was possible before. */
void sandbox_open(struct sandbox *sandbox, const struct confinement *confinement, const struct interpreter *interpreter);
/* Wait for the parked process to be ready; 0 when it ended instead. */
int sandbox_is_ready(struct sandbox *sandbox);
/* Show it the code that lies in the container's work folder, and the built program, if there is one. */
void sandbox_attach_code(struct sandbox *sandbox);
/* Hand over the job. 0 when the parked process is gone. */
int sandbox_start(struct sandbox *sandbox, const struct job *job, const char *strings);
/* Ask every process in it to end. */
void sandbox_terminate(struct sandbox *sandbox);
/* Kill every process but init, when the program of a zygote has ended; 0 when init is gone itself. */
int sandbox_end_everyone(struct sandbox *sandbox);
/* The wait status of the program, if its end has been told; only for programs that init started, which then
 * ends everyone else first. */
int sandbox_has_ended(struct sandbox *sandbox, int *status);
/* Kill everything in it, init too; no process of it is left when this returns. */
void sandbox_kill(struct sandbox *sandbox);
/* Let go of what is left of a killed one: its files. */
void sandbox_close(struct sandbox *sandbox);

#endif
