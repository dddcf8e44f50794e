/* See netlink.h. */
#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_SOCKETS 8u

/* Return the number of netlink sockets in this network; MAX_SOCKETS if /proc/net/protocols cannot be read. */
static unsigned count_sockets(void)
{
    static char text[8192];
    unsigned count;
    int file = open("/proc/net/protocols", O_RDONLY | O_CLOEXEC);
    ssize_t length = file >= 0 ? read(file, text, sizeof text - 1) : -1;
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
    const char *line = strstr(text, "\nNETLINK ");
    return line && sscanf(line, " NETLINK %*u %u", &count) == 1 ? count : MAX_SOCKETS;
}

/* Return a new socket, or -1 with errno. Counting takes time. So this function keeps an estimate that is never
 * too low, and counts only when the estimate reaches MAX_SOCKETS. */
static int open_socket(int type)
{
    static unsigned estimate; /* closed sockets are not subtracted */
    if (estimate >= MAX_SOCKETS)
        estimate = count_sockets();
    if (estimate >= MAX_SOCKETS) {
        errno = EMFILE;
        return -1;
    }
    int made = socket(AF_NETLINK, type | SOCK_CLOEXEC, NETLINK_ROUTE);
    estimate += made >= 0;
    return made;
}

static void refuse(int listener, uint64_t id, int error)
{
    struct seccomp_notif_resp answer = {.id = id, .error = -error};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

/* Add the socket to the caller's descriptors, and make the caller's socket() return the new descriptor. Return
 * 0, or -1 with errno. */
static int add_to_caller(int listener, uint64_t id, int made, int type)
{
    struct seccomp_notif_addfd addition = {
        .id = id,
        .flags = SECCOMP_ADDFD_FLAG_SEND, /* since Linux 5.14 */
        .srcfd = (uint32_t)made,
        .newfd_flags = type & SOCK_CLOEXEC ? O_CLOEXEC : 0,
    };
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &addition) < 0 ? -1 : 0;
}

int netlink_serve(int listener)
{
    struct seccomp_notif call;
    memset(&call, 0, sizeof call);
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
        return errno == EINTR || errno == ENOENT; /* ENOENT: the caller has been killed meanwhile */
    int type = (int)call.data.args[1];
    /* The runs of an importer have one filter together. A call of a process outside of this sandbox has no number here. */
    int made = call.pid ? open_socket(type) : -1;
    if (!call.pid)
        errno = EPERM;
    if (made < 0 || add_to_caller(listener, call.id, made, type))
        refuse(listener, call.id, errno);
    if (made >= 0)
        close(made);
    return 1;
}
