/* The system calls that a run may not make, in addition to those that the container's own profile refuses. */
#ifndef FILTER_H
#define FILTER_H

/* Install the filter on the calling process, permanently; 0, or -1 with errno.
 *
 * shared: whether the process runs at the shared level. Then the filter also refuses objects that outlive a
 * process.
 * listener: set to the descriptor at which calls of socket(AF_NETLINK) wait (netlink.h). Set to -1 at the
 * shared level, and if the kernel does not support such a listener. Then these calls are refused. */
int filter_install(int shared, int *listener);

#endif
