/* See anchor.h. */
#define _GNU_SOURCE
#include "anchor.h"
#include "confine.h"
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

void anchor_main(void)
{
    if (write(0, "", 1) != 1 || close(0))
        _exit(1);
    for (;;)
        pause();
}

/* The process is not dumpable until it is executed, when it is confined already. Otherwise the importer could take it
 * over, or read what it has inherited. */
__attribute__((noreturn)) static void become_anchor(int user_namespace, int ready)
{
    char name[] = ANCHOR_NAME, *arguments[] = {name, NULL}, *environment[] = {NULL};
    if (!setns(user_namespace, CLONE_NEWUSER) && dup2(ready, 0) >= 0 && !close_range(1, ~0u, 0) &&
        !confine_capabilities() && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !filter_install(FILTER_SANDBOX, NULL))
        execve("/proc/self/exe", arguments, environment);
    _exit(1);
}

int anchor_start(int user_namespace, pid_t *anchor)
{
    int ready[2], pidfd = -1;
    char byte;
    if (pipe2(ready, O_CLOEXEC))
        return -1;
    *anchor = fork();
    if (*anchor == 0)
        become_anchor(user_namespace, ready[1]);
    close(ready[1]);
    if (*anchor > 0 && read(ready[0], &byte, 1) == 1)
        pidfd = (int)syscall(SYS_pidfd_open, *anchor, 0);
    close(ready[0]);
    return pidfd;
}

void anchor_stop(pid_t anchor)
{
    kill(anchor, SIGKILL);
    while (waitpid(anchor, NULL, 0) < 0 && errno == EINTR)
        ;
}
