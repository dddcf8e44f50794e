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

#define MOST_SOCKETS 8u

/* How many netlink sockets this network has; MOST_SOCKETS when that cannot be read. /proc/net/protocols */
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
    return line && sscanf(line, " NETLINK %*u %u", &count) == 1 ? count : MOST_SOCKETS;
}

/* A new socket, or -1 with errno. Sockets are counted only when there could be too many. */
static int open_socket(int type)
{
    static unsigned at_most; /* upper bound of the open sockets */
    if (at_most >= MOST_SOCKETS)
        at_most = count_sockets();
    if (at_most >= MOST_SOCKETS) {
        errno = EMFILE;
        return -1;
    }
    int made = socket(AF_NETLINK, type | SOCK_CLOEXEC, NETLINK_ROUTE);
    at_most += made >= 0;
    return made;
}

static void refuse(int listener, uint64_t id, int error)
{
    struct seccomp_notif_resp answer = {.id = id, .error = -error};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
}

/* Put the socket among the caller's descriptors and have its call return that; 0 or -1 with errno. */
static int give(int listener, uint64_t id, int made, int type)
{
    struct seccomp_notif_addfd gift = {
        .id = id,
        .flags = SECCOMP_ADDFD_FLAG_SEND, /* since Linux 5.14 */
        .srcfd = (uint32_t)made,
        .newfd_flags = type & SOCK_CLOEXEC ? O_CLOEXEC : 0,
    };
    return ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &gift) < 0 ? -1 : 0;
}

int netlink_serve(int listener)
{
    struct seccomp_notif call;
    memset(&call, 0, sizeof call);
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
        return errno == EINTR || errno == ENOENT; /* ENOENT: the caller was killed meanwhile */
    int type = (int)call.data.args[1];
    int made = open_socket(type);
    if (made < 0 || give(listener, call.id, made, type))
        refuse(listener, call.id, errno);
    if (made >= 0)
        close(made);
    return 1;
}
