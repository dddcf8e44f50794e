/* A sandbox: a new set of namespaces and mounts for one run, which the supervisor makes without privileges.
 *
 * A sandbox is pre-created and waits for its run. It has an init, process 1 of its process namespace, and
 * one pre-created process that waits for its job (job.h). It ends when its init is killed: processes,
 * mounts, IPC objects and sockets end with it, so nothing has to be wiped. */
#ifndef SANDBOX_H
#define SANDBOX_H

#include "confine.h"
#include "interpreter.h"
#include "job.h"
#include "listening.h"
#include "sandbox_mounts.h"
#include "writable.h"

#include <stddef.h>
#include <sys/types.h>

/* The process that forked the pre-created process. It reaps that process and reports its end. */
enum program_parent { PARENT_INIT, PARENT_ZYGOTE };

struct sandbox {
    pid_t init;                         /* its process number in the container; 0: there is no sandbox */
    int init_pidfd;
    int control;                        /* socket to init (control.h) */
    int job;                            /* socket to the pre-created process (job.h) */
    int in;                             /* write end of its standard input */
    int out, err;                       /* read ends of its standard output and error */
    enum program_parent parent;
    pid_t zygote_child;                 /* PARENT_ZYGOTE: the process's number in the container */
    struct writable_dirs dirs;
    struct listening_sockets listening; /* the caller of sandbox_open() hands them to the worker */
};

/* Create one sandbox in a separate process, to find out whether this host allows sandboxes. `reason` gets
 * the step that failed; it is empty on success. */
int sandbox_is_possible(const struct work_limits *work, char *reason, size_t room);
/* Move the supervisor for good into its own user and mount namespace, in which it may create sandboxes. */
void sandbox_prepare_supervisor(void);
/* Create a sandbox. Return 0 if the zygote could not fork its process. Exit on any other failure: it is
 * unexpected, because sandbox_is_possible() has succeeded. */
int sandbox_open(struct sandbox *sandbox, const struct work_limits *work, const struct confinement *confinement,
                 const struct interpreter *interpreter);
/* Wait until the pre-created process waits for its job; 0 if it has ended instead. */
int sandbox_wait_ready(struct sandbox *sandbox);
/* Mount the code from the container's /work, and the built program, if there is one. */
void sandbox_attach_code(struct sandbox *sandbox);
/* Send the job to the pre-created process; 0 if the process has ended. */
int sandbox_start(struct sandbox *sandbox, const struct job *job, const char *strings);
/* Return the errno if the program could not be executed, else 0. Call this after the process has ended. */
uint32_t sandbox_exec_error(const struct sandbox *sandbox);
/* Send SIGTERM to every process of the run. */
void sandbox_terminate(struct sandbox *sandbox);
/* Kill every process but init; 0 if init has ended. */
int sandbox_kill_run(struct sandbox *sandbox);
/* PARENT_INIT only: whether init has reported the program's end, and the program's wait status. Init kills the
 * run's other processes first. If init itself has ended, the program has ended with SIGKILL. */
int sandbox_program_has_ended(struct sandbox *sandbox, int *status);
/* Kill every process, init too, and wait until all have ended. */
void sandbox_kill(struct sandbox *sandbox);
/* Close the descriptors of a killed sandbox, except the standard streams. */
void sandbox_close(struct sandbox *sandbox);

#endif
