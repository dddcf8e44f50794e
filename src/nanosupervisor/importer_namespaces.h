/* The namespaces of the runs that an importer forks (importer.h).
 *
 * A fork carries all that untrusted code has done to the importer, so it must enter its sandbox by itself: no process
 * can move another one. For setns(2) it needs capabilities in the sandbox. It gets them by the rule about owners
 * (user_namespaces(7)): a process has all capabilities in the descendants of a user namespace that its user has
 * created and whose parent is the process's own user namespace. The importer has no capability in its own namespace.
 *
 * A process that enters a user namespace has all capabilities there, until it drops them. An importer may not drop them.
 * So the process enters a user namespace that owns nothing:
 *
 *   the importer's user namespace      of its sandbox; the importer has no capability in it
 *     the owner                        owns the mount, process, IPC, network and UTS namespaces of each run. Only the
 *                                      inits of these sandboxes are in it
 *       the runs' user namespace       owns nothing. The processes of runs are in it, so their capabilities are of no use
 *
 * The importer sees the processes of runs, because setns(2) enters process namespaces only downwards. It is no threat
 * to an init, because an init is never dumpable while the importer can see it. */
#ifndef IMPORTER_NAMESPACES_H
#define IMPORTER_NAMESPACES_H

#include <stddef.h>
#include <sys/types.h>

struct importer_namespaces {
    int process; /* the process namespace of the importer's sandbox */
    int owner;   /* the user namespace of the inits */
    int runs;    /* the user namespace of the processes of runs */
};

/* Create the two user namespaces in the sandbox whose init has this number. Return 0, or -1 with errno. The init must
 * still be dumpable. */
int importer_namespaces_open(struct importer_namespaces *namespaces, pid_t init);
void importer_namespaces_close(struct importer_namespaces *namespaces);

/* The creation of an init by a helper. The importer sees the helper and may stop or kill it, so the supervisor does not
 * wait for the helper. */
struct init_creation {
    int helper; /* pidfd; -1: there is no creation */
    int answer; /* readable when the helper has answered or ended */
};

/* The number of descriptors that an init gets at most. */
#define MOST_KEPT 8

/* What an init does. */
struct init_work {
    void (*run)(void *argument); /* must not return */
    void *argument;
    int kept[MOST_KEPT]; /* the descriptors that it gets */
    size_t kept_count;
};

/* Begin to create an init in a new sandbox for a run, as a child of the supervisor. Return 0, or -1 with errno. */
int importer_namespaces_begin_clone(const struct importer_namespaces *namespaces, struct init_creation *creation,
                                    const struct init_work *work);
/* Return the number of the init in the container, and its pidfd; 0 if the helper has not answered; -1 with errno if it
 * has failed. The creation has ended unless the return value is 0. */
pid_t importer_namespaces_take_init(struct init_creation *creation, int *pidfd);
/* Kill the helper, if there is a creation. Return the number of an init that it has created nevertheless, and its pidfd;
 * 0 if there is none. */
pid_t importer_namespaces_cancel_clone(struct init_creation *creation, int *pidfd);

#endif
