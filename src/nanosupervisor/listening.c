/* See listening.h. The worker's end is src/nanoagent/network/listening_sockets.py. */
#define _GNU_SOURCE
#include "listening.h"
#include "descriptors.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int channel = -1;
static struct listening_address wanted[MAX_LISTENING_SOCKETS];
static size_t wanted_count;

void listening_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("socket path too long");
    strcpy(address.sun_path, path);
    /* Each message is one set. */
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (channel >= 0 && connect(channel, (struct sockaddr *)&address, sizeof address)) {
        close(channel);
        channel = -1;
    }
}

void listening_configure(const struct listening_address *addresses, size_t count)
{
    errno = 0;
    if (count > MAX_LISTENING_SOCKETS)
        die("%zu listening sockets (limit %u)", count, MAX_LISTENING_SOCKETS);
    memcpy(wanted, addresses, count * sizeof *addresses);
    wanted_count = count;
}

static int open_one(const struct listening_address *at)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(at->port)};
    memcpy(&address.sin_addr, at->address, sizeof at->address);
    int is_tcp = at->kind == LISTENING_TCP, yes = 1;
    int made = socket(AF_INET, (is_tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_CLOEXEC, 0);
    /* SO_REUSEADDR: connections of the previous run that the kernel still remembers must not prevent
     * listening. */
    int failed = made < 0 || (is_tcp && setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes));
    if (failed || bind(made, (struct sockaddr *)&address, sizeof address)) {
        if (made >= 0)
            close(made);
        return -1;
    }
    return made;
}

void listening_open(struct listening_sockets *sockets)
{
    for (size_t i = 0; i < MAX_LISTENING_SOCKETS; i++)
        sockets->socket[i] = i < wanted_count ? open_one(&wanted[i]) : -1;
}

void listening_hand_over(struct listening_sockets *sockets)
{
    /* A byte 255, because a message must not be empty; then the number of each address whose socket is in
     * the message. */
    uint8_t numbers[1 + MAX_LISTENING_SOCKETS] = {255};
    int handed[MAX_LISTENING_SOCKETS];
    size_t count = 0;
    for (size_t i = 0; i < wanted_count; i++)
        if (sockets->socket[i] >= 0) {
            numbers[1 + count] = (uint8_t)i;
            handed[count++] = sockets->socket[i];
        }
    /* If the worker does not take the sockets, the run continues without a network. */
    if (wanted_count && channel >= 0 &&
        descriptors_send(channel, numbers, 1 + count, handed, count, MSG_DONTWAIT))
        errno = 0;
    listening_close(sockets);
}

int listening_is_configured(uint32_t address, uint16_t port)
{
    for (size_t i = 0; i < wanted_count; i++)
        if (wanted[i].port == port && !memcmp(wanted[i].address, &address, sizeof address))
            return 1;
    return 0;
}

void listening_close(struct listening_sockets *sockets)
{
    for (size_t i = 0; i < MAX_LISTENING_SOCKETS; i++)
        if (sockets->socket[i] >= 0) {
            close(sockets->socket[i]);
            sockets->socket[i] = -1;
        }
}
