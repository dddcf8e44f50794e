/* The system calls that a run may not make, in addition to those that the container's own profile refuses. */
#ifndef FILTER_H
#define FILTER_H

/* Install the filter on the calling process, for good; 0, or -1 with errno. shared: Also refuse objects
 * that live in the container and not in a process. listener: Set to the descriptor at which socket calls
 * for route netlink wait (netlink.h). Set to -1 at the shared level
 *   and where the kernel does not support it: then these calls are refused. */
int filter_install(int shared, int *listener);

#endif
