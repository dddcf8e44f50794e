/* Route netlink for a run: how programs list network interfaces.
 *
 * The kernel keeps unread answers for each netlink socket, and no control group counts them: up to twice
 * net.core.rmem_max if the program asks for it (SO_RCVBUF). So a run gets a bounded number of sockets: its filter
 * (filter.c) hands each socket(AF_NETLINK, …, NETLINK_ROUTE) to its sandbox's init, which makes the socket in the run's own
 * network. The supervisor ends a run whose sockets keep more than MOST_NETLINK_BYTES. seccomp_unotify(2), rtnetlink(7) */
#ifndef NETLINK_H
#define NETLINK_H

/* Answer one call that waits at the filter's listener; 0 when no process has the filter any more. */
int netlink_serve(int listener);

#endif
