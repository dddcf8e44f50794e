/* The system calls that a run may not make, in addition to those that the container's own profile refuses. */
#ifndef FILTER_H
#define FILTER_H

enum filter {
    FILTER_SANDBOX,  /* a run in a sandbox */
    FILTER_SHARED,   /* a run at the shared level: also refuses objects that outlive a process */
    FILTER_IMPORTER, /* the importer and its runs: allows to enter a sandbox. The kernel allows that only to the importer
                        (importer_namespaces.h) */
};

/* Install the filter on the calling process, permanently; 0, or -1 with errno.
 *
 * listener: set to the descriptor at which calls of socket(AF_NETLINK) wait (netlink.h). Set to -1 at the
 * shared level, and if the kernel does not support such a listener. Then these calls are refused. NULL: they are
 * refused. */
int filter_install(enum filter kind, int *listener);

#endif
