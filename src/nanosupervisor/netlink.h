/* Route netlink for a run, with which programs list network interfaces.
 *
 * The kernel keeps unread answers for each netlink socket: up to twice net.core.rmem_max, if the program sets
 * SO_RCVBUF. No control group counts this memory. So a run may have only a few such sockets. The run's filter
 * (filter.c) sends each call of socket(AF_NETLINK, …, NETLINK_ROUTE) to the sandbox's init, which creates the
 * socket in the run's network. The supervisor ends a run whose sockets keep too many bytes
 * (MAX_NETLINK_BYTES in run.c). seccomp_unotify(2), rtnetlink(7) */
#ifndef NETLINK_H
#define NETLINK_H

/* Answer one call that waits at the filter's listener; 0 if no process has the filter any more. */
int netlink_serve(int listener);

#endif
