/* See loopback.h. */
#define _GNU_SOURCE
#include "loopback.h"
#include "sandbox_init.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOPBACK_INDEX 1 /* loopback is the first interface of every network namespace */

static void bring_up(void)
{
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int inet = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    must(inet < 0 || ioctl(inet, SIOCSIFFLAGS, &loopback), "bring up loopback");
    close(inet);
}

/* The address 127.0.0.2 is for programs that resolve names with AI_ADDRCONFIG. The C library then asks
 * netlink for addresses, and resolves no names if 127.0.0.1 is the only one.
 * sysdeps/unix/sysv/linux/check_pf.c */
static void add_second_address(void)
{
    struct {
        struct nlmsghdr header;
        struct ifaddrmsg body;
        struct rtattr local;
        struct in_addr address;
    } request = {
        .header = {sizeof request, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0},
        .body = {.ifa_family = AF_INET, .ifa_prefixlen = 8, .ifa_scope = RT_SCOPE_HOST, .ifa_index = LOOPBACK_INDEX},
        .local = {RTA_LENGTH(sizeof request.address), IFA_LOCAL},
        .address = {htonl(INADDR_LOOPBACK + 1)},
    };
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
    } answer = {.error = {.error = -EIO}};
    int route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int failed = route < 0 || send(route, &request, sizeof request, 0) < 0 ||
                 recv(route, &answer, sizeof answer, 0) < 0;
    if (!failed)
        errno = -answer.error.error;
    must(failed || errno, "give loopback an address");
    close(route);
}

void setup_loopback(void)
{
    bring_up();
    add_second_address();
}
