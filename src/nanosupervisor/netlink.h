/* Route netlink for a run: how programs list network interfaces.
 *
 * The kernel keeps up to 400 KiB of unread answers for each netlink socket, and no control group counts them. So a run
 * gets a bounded number of them: its filter (filter.c) hands each socket(AF_NETLINK, …, NETLINK_ROUTE) to its sandbox's
 * init, which makes the socket in the run's own network. seccomp_unotify(2), rtnetlink(7) */
#ifndef NETLINK_H
#define NETLINK_H

/* Answer one call that waits at the filter's listener; 0 when no process has the filter any more. */
int netlink_serve(int listener);

#endif
