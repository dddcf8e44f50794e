/* See namespaces.h. */
#define _GNU_SOURCE
#include "namespaces.h"
#include "confine.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

int write_text(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    ssize_t written = write(file, text, strlen(text));
    close(file);
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

int namespaces_map_user(uid_t outside_user, gid_t outside_group)
{
    char users[64], groups[64];
    snprintf(users, sizeof users, "%d %u 1", RUN_USER, outside_user);
    snprintf(groups, sizeof groups, "%d %u 1", RUN_USER, outside_group);
    /* After a change of its capabilities a process is not dumpable, and its files in /proc belong to root. */
    prctl(PR_SET_DUMPABLE, 1);
    return write_text("/proc/self/setgroups", "deny") || write_text("/proc/self/uid_map", users) ||
                   write_text("/proc/self/gid_map", groups)
               ? -1
               : 0;
}

const char *namespaces_enter_own(void)
{
    uid_t user = getuid();
    gid_t group = getgid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
        return "unshare(CLONE_NEWUSER)";
    if (namespaces_map_user(user, group))
        return "map the user of the container";
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return "make mounts private";
    return NULL;
}
