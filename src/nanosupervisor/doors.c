/* See doors.h. The agent's end is src/nanoagent/network/doors.py. */
#define _GNU_SOURCE
#include "doors.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int channel = -1;
static struct door wanted[MAX_DOORS];
static size_t wanted_count;

void doors_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("socket path too long");
    strcpy(address.sun_path, path);
    /* Each message is one set of doors. */
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (channel >= 0 && connect(channel, (struct sockaddr *)&address, sizeof address)) {
        close(channel);
        channel = -1;
    }
}

void doors_configure(const struct door *doors, size_t count)
{
    errno = 0;
    if (count > MAX_DOORS)
        die("%zu doors", count);
    memcpy(wanted, doors, count * sizeof *doors);
    wanted_count = count;
}

static int open_one(const struct door *door)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(door->port)};
    memcpy(&address.sin_addr, door->address, sizeof door->address);
    int is_tcp = door->kind == DOOR_TCP, yes = 1;
    int made = socket(AF_INET, (is_tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
    /* Or connections of the run before that are not forgotten yet would keep the agent from listening again. */
    int failed = made < 0 || (is_tcp && setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes));
    if (failed || bind(made, (struct sockaddr *)&address, sizeof address)) {
        if (made >= 0)
            close(made);
        return -1;
    }
    return made;
}

void doors_open(struct doors *doors)
{
    for (size_t i = 0; i < MAX_DOORS; i++)
        doors->socket[i] = i < wanted_count ? open_one(&wanted[i]) : -1;
}

void doors_hand_over(struct doors *doors)
{
    /* The number of each door whose descriptor comes with it; 255 stands before them, for a message is never empty. */
    uint8_t numbers[1 + MAX_DOORS] = {255};
    int handed[MAX_DOORS];
    size_t count = 0;
    for (size_t i = 0; i < wanted_count; i++)
        if (doors->socket[i] >= 0) {
            numbers[1 + count] = (uint8_t)i;
            handed[count++] = doors->socket[i];
        }
    char room[CMSG_SPACE(sizeof handed)] = {0};
    struct iovec part = {numbers, 1 + count};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = room;
        message.msg_controllen = CMSG_SPACE(count * sizeof *handed);
        struct cmsghdr *descriptors = CMSG_FIRSTHDR(&message);
        descriptors->cmsg_level = SOL_SOCKET;
        descriptors->cmsg_type = SCM_RIGHTS;
        descriptors->cmsg_len = CMSG_LEN(count * sizeof *handed);
        memcpy(CMSG_DATA(descriptors), handed, count * sizeof *handed);
    }
    /* An agent that does not take them has no use for them: a run goes on without. */
    if (wanted_count && channel >= 0 && sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        errno = 0;
    doors_close(doors);
}

void doors_close(struct doors *doors)
{
    for (size_t i = 0; i < MAX_DOORS; i++)
        if (doors->socket[i] >= 0) {
            close(doors->socket[i]);
            doors->socket[i] = -1;
        }
}
