/* A pre-created process that init forks: confined already, it waits for its job and becomes the program. */
#ifndef PRECREATED_H
#define PRECREATED_H

#include "confine.h"
#include "interpreter.h"
#include "job.h"

/* Run as that process: confine it, then wait here for the job, or execute the interpreter that waits for it. */
__attribute__((noreturn)) void precreated_main(const int own[PROCESS_DESCRIPTORS],
                                               const struct confinement *confinement,
                                               const struct interpreter *interpreter);

#endif
