/* The anchor: a process in the sandbox of a run that the importer forks. setns(2) takes all namespaces of one process,
 * so a process must exist that is in the runs' user namespace and in the other namespaces of the sandbox
 * (importer_namespaces.h). The importer may trace the anchor, so the anchor is confined like a run, and is executed anew:
 * a fork would have a copy of the supervisor's memory, with data of earlier runs. */
#ifndef ANCHOR_H
#define ANCHOR_H

#include <sys/types.h>

/* The name with which the supervisor's file is executed as the anchor. */
#define ANCHOR_NAME "anchor"

/* Fork the anchor, and wait until it is in the user namespace. Return a pidfd, or -1 with errno. */
int anchor_start(int user_namespace, pid_t *anchor);
void anchor_stop(pid_t anchor);
/* Run as the anchor. */
__attribute__((noreturn)) void anchor_main(void);

#endif
