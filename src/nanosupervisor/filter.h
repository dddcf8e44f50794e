/* The system calls that a run may not make, beyond those the container's own profile already refuses. */
#ifndef FILTER_H
#define FILTER_H

/* Install the filter on the calling process, for good; 0 or -1 with errno.
 * shared: Also refuse objects that live in the container rather than in a process.
 * listener: In a sandbox, where sockets of route netlink can be asked for (netlink.h); -1 if the kernel does not
 *   support that: then they are refused. */
int filter_install(int shared, int *listener);

#endif
