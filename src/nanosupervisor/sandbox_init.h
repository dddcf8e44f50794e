/* Init: process 1 of a sandbox's process namespace. It makes the sandbox from inside, and reaps its
 * processes. */
#ifndef SANDBOX_INIT_H
#define SANDBOX_INIT_H

#include "confine.h"
#include "job.h"
#include "sandbox_mounts.h"

/* What init needs to make a sandbox. */
struct sandbox_plan {
    int control;                      /* the socket to the supervisor (control.h) */
    int process[PROCESS_DESCRIPTORS]; /* of the pre-created process; all -1: the zygote forks it, not init */
    struct confinement confinement;   /* of that process */
    struct work_limits work;
    /* In a sandbox for a run of the importer: the user namespace of runs, as a descriptor (importer_namespaces.h). Init
     * starts in a user namespace that is ready. Else -1. */
    int run_namespace;
};

/* Run as init, in a new process with new namespaces. */
__attribute__((noreturn)) void init_main(struct sandbox_plan plan);
/* In init, and in a process that init has forked and that is not confined yet: if a step has failed, report the
 * step with errno to the supervisor and exit. */
void must(int failed, const char *step);

#endif
