/* A sandbox: a new set of namespaces and mounts for one run, which the supervisor makes without privileges.
 *
 * A sandbox is pre-created and waits for its run. It has an init, process 1 of its process namespace, and
 * one pre-created process that waits for its job (job.h). It ends when its init is killed: processes,
 * mounts, IPC objects and sockets end with it, so nothing has to be wiped. */
#ifndef SANDBOX_H
#define SANDBOX_H

#include "confine.h"
#include "control.h"
#include "importer_namespaces.h"
#include "interpreter.h"
#include "job.h"
#include "listening.h"
#include "sandbox_mounts.h"
#include "writable.h"

#include <poll.h>
#include <stddef.h>
#include <sys/types.h>

/* The process that forked the pre-created process. It reaps that process and reports its end. For the importer, the init
 * of the importer's sandbox does that. */
enum program_parent { PARENT_INIT, PARENT_ZYGOTE, PARENT_IMPORTER };

/* How far the creation of a sandbox has come. Each stage ends with the message that is named. */
enum stage {
    STAGE_CLONING,   /* PARENT_IMPORTER only: a helper clones init */
    STAGE_CLONED,    /* init runs, and makes the sandbox: REPORT_MADE */
    STAGE_FORKING,   /* the zygote forks the pre-created process: ZYGOTE_FORKED. Skipped if init forks it */
    STAGE_STARTING,  /* the pre-created process confines itself, and starts: JOB_READY. The importer forks it first */
    STAGE_WAITING,   /* the process waits for its job; the code is not mounted. sandbox_attach_code() ends it */
    STAGE_EXAMINING, /* the process looks at the names in the code: NAMES_FREE or NAMES_TAKEN. Only KIND_ZYGOTE, and only
                        if the supervisor does not know them */
    STAGE_ATTACHING, /* init mounts the code: REPORT_ATTACHED */
    STAGE_ATTACHED,  /* a job can start */
    STAGE_FAILED,    /* a step has failed, or a process of the sandbox has ended. The sandbox must be discarded */
};

struct sandbox {
    enum stage stage;
    struct report failure;              /* STAGE_FAILED: the step, if it has been reported */
    pid_t init;                         /* its process number in the container; 0: there is no sandbox */
    int init_pidfd;
    int control;                        /* socket to init (control.h) */
    int job;                            /* socket to the pre-created process (job.h) */
    int in;                             /* write end of its standard input */
    int out, err;                       /* read ends of its standard output and error */
    enum kind kind;                     /* of its pre-created process */
    enum program_parent parent;
    int process[PROCESS_DESCRIPTORS];   /* not PARENT_INIT, STAGE_CLONED: for the process; else -1 */
    struct confinement confinement;     /* of the process */
    enum names names;                   /* what the process has found, or has been told */
    unsigned fork_ticket;               /* STAGE_FORKING: of the request to the zygote */
    pid_t zygote_child;                 /* PARENT_ZYGOTE: the process's number in the container */
    struct init_creation creation;      /* STAGE_CLONING */
    int anchor;                         /* PARENT_IMPORTER, STAGE_CLONED: its pidfd (anchor.h); else -1 */
    uint64_t pid_namespace;             /* inode number */
    pid_t importer_child;               /* PARENT_IMPORTER: the process's number in the importer's sandbox */
    int filter_listener;                /* of the importer, which keeps it for its runs; else -1 */
    struct writable_dirs dirs;
    struct listening_sockets listening; /* until they are handed to the worker */
};

/* The number of descriptors that sandbox_watch() adds at most. */
#define SANDBOX_EVENTS 2

/* Create one sandbox in a separate process, to find out whether this host allows sandboxes. `reason` gets
 * the step that failed; it is empty on success. */
int sandbox_is_possible(const struct work_limits *work, char *reason, size_t room);
/* Move the supervisor for good into its own user and mount namespace, in which it may create sandboxes. */
void sandbox_prepare_supervisor(void);

/* Begin to create a sandbox, and return without waiting. */
void sandbox_begin(struct sandbox *sandbox, const struct work_limits *work, const struct confinement *confinement,
                   enum kind kind);
/* Write the descriptors with the sandbox's next messages to `events`, and return their number. Messages of the
 * zygote are not among them: zygote_fd(). */
size_t sandbox_watch(const struct sandbox *sandbox, struct pollfd events[SANDBOX_EVENTS]);
/* Take all steps that need no waiting. */
void sandbox_advance(struct sandbox *sandbox);
/* In STAGE_WAITING: let init mount the code from the container's /work, and the built program, if there is one. `names`
 * is what another process of the same zygote has found in the same code. */
void sandbox_attach_code(struct sandbox *sandbox, enum names names);

/* Let init serve the netlink calls that wait at this listener (netlink.h). */
void sandbox_serve_netlink(const struct sandbox *sandbox, int listener);
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

/* Begin to kill every process, init too. */
void sandbox_begin_kill(const struct sandbox *sandbox);
/* Kill every process, init too, and wait until all have ended. */
void sandbox_kill(struct sandbox *sandbox);
/* Close the descriptors of a killed sandbox, except the standard streams. */
void sandbox_close(struct sandbox *sandbox);
/* Kill a sandbox that no run has used, in any stage, and close all its descriptors. */
void sandbox_discard(struct sandbox *sandbox);
/* Exit with the reported failure of a sandbox. */
__attribute__((noreturn)) void sandbox_die(const struct sandbox *sandbox);

#endif
