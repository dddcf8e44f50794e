/* A pre-created process that init forks: confined already, it waits for its job and becomes the program. */
#ifndef PRECREATED_H
#define PRECREATED_H

#include "confine.h"
#include "job.h"

/* Run as that process: confine it, wait for the job, and execute it. */
__attribute__((noreturn)) void precreated_main(const int own[PROCESS_DESCRIPTORS],
                                               const struct confinement *confinement);

#endif
