/* The system calls that a run may not make, beyond those the container's own profile already refuses. */
#ifndef FILTER_H
#define FILTER_H

/* Install the filter on the calling process, for good; 0 or -1 with errno.
 * `shared`: also refuse what lives in the container rather than in a process. */
int filter_install(int shared);

#endif
