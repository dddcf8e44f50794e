/* A sandbox: for each run a fresh set of namespaces and mounts, made by the unprivileged supervisor.
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

/* Create one sandbox in a process of its own, to see whether this host allows it. If not, `reason` is the
 * step that failed; else it is empty. */
int sandbox_is_possible(const struct work_limits *work, char *reason, size_t room);
/* Move the supervisor for good into its own user and mount namespace, in which it may create sandboxes. */
void sandbox_enter(void);
/* Create a sandbox. 0: the zygote has not forked its process. Exits on any other failure, because
 * sandbox_is_possible() has succeeded. */
int sandbox_open(struct sandbox *sandbox, const struct work_limits *work, const struct confinement *confinement,
                 const struct interpreter *interpreter);
/* Wait until the pre-created process waits for its job; 0 if it has ended instead. */
int sandbox_wait_ready(struct sandbox *sandbox);
/* Mount the code that lies in the container's /work, and the built program, if there is one. */
void sandbox_attach_code(struct sandbox *sandbox);
/* Send the job to the pre-created process; 0 if the process has ended. */
int sandbox_start(struct sandbox *sandbox, const struct job *job, const char *strings);
/* The errno with which the program could not be executed, else 0. Read it when the process has ended. */
uint32_t sandbox_exec_error(const struct sandbox *sandbox);
/* Send SIGTERM to every process of the run. */
void sandbox_terminate(struct sandbox *sandbox);
/* Kill every process but init; 0 if init has ended. */
int sandbox_kill_run(struct sandbox *sandbox);
/* PARENT_INIT only: whether init has reported the program's end, and its wait status. Init kills the
 * program's other processes first. */
int sandbox_has_ended(struct sandbox *sandbox, int *status);
/* Kill every process, init too, and wait until all have ended. */
void sandbox_kill(struct sandbox *sandbox);
/* Close the descriptors of a killed sandbox, except the standard streams. */
void sandbox_close(struct sandbox *sandbox);

#endif
