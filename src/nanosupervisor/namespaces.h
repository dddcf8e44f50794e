/* The namespaces of the supervisor and of sandboxes. namespaces(7), user_namespaces(7) */
#ifndef NAMESPACES_H
#define NAMESPACES_H

#include <sched.h>
#include <sys/types.h>

/* The namespaces of a sandbox, as flags of clone(2). */
#define SANDBOX_NAMESPACES (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)

/* Move the supervisor into its own user and mount namespace, in which it may create sandboxes. Return the
 * step that failed, with errno, or NULL. */
const char *namespaces_enter_own(void);
/* Map RUN_USER, as user and group of the caller's new user namespace, to a user and group outside; 0 or -1
 * with errno. */
int namespaces_map_user(uid_t outside_user, gid_t outside_group);
/* Write text to an existing file, such as one of /proc; 0 or -1 with errno. */
int write_text(const char *path, const char *text);

#endif
