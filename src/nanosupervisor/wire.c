/* See wire.h. All calls block, because the supervisor does one thing at a time. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* A message to SQS has at most 1 MiB; the rest is room for arguments, environment and the header. */
#define MAX_FRAME (4u << 20)
/* Together 2 s. */
#define MEMORY_ATTEMPTS 1000
#define MEMORY_PAUSE_US 2000

struct __attribute__((packed)) header {
    uint32_t length;
    char type;
};

static int worker = -1;

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("nanosupervisor: ", stderr);
    vfprintf(stderr, format, arguments);
    if (errno)
        fprintf(stderr, ": %s", strerror(errno));
    fputc('\n', stderr);
    va_end(arguments);
    _exit(125);
}

void wire_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("socket path too long");
    strcpy(address.sun_path, path);
    worker = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (worker < 0 || connect(worker, (struct sockaddr *)&address, sizeof address))
        die("cannot connect to the worker at %s", path);
}

int wire_fd(void)
{
    return worker;
}

/* ---- sending ------------------------------------------------------------------------------------------ */

static char buffered[64 * 1024];
static size_t buffered_length;

/* Whether a failed sendmsg() may succeed later. The data in a socket is charged to the container's memory. When a run
 * has used that up, the kernel frees the memory of the killed processes a little later. */
static int may_send_later(int *attempts_left)
{
    if (errno == EINTR)
        return 1;
    if ((errno != ENOBUFS && errno != ENOMEM) || !(*attempts_left)--)
        return 0;
    usleep(MEMORY_PAUSE_US);
    return 1;
}

int wire_send_parts(int to, struct iovec *parts, size_t count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    int attempts_left = MEMORY_ATTEMPTS;
    while (message.msg_iovlen) {
        ssize_t sent = sendmsg(to, &message, MSG_NOSIGNAL);
        if (sent < 0 && may_send_later(&attempts_left))
            continue;
        if (sent < 0)
            return 0;
        while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        }
    }
    return 1;
}

static void send_to_worker(struct iovec *parts, size_t count)
{
    if (!wire_send_parts(worker, parts, count))
        _exit(0);
}

void wire_flush(void)
{
    struct iovec all = {buffered, buffered_length};
    buffered_length = 0;
    if (all.iov_len)
        send_to_worker(&all, 1);
}

void wire_send_raw(const void *data, size_t length)
{
    struct iovec part = {(void *)data, length};
    wire_flush();
    send_to_worker(&part, 1);
}

size_t wire_send_now(const void *data, size_t length)
{
    wire_flush();
    ssize_t sent = send(worker, data, length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0)
        return (size_t)sent;
    /* Without memory for the socket, the caller tries again when the worker receives. */
    if (errno != EAGAIN && errno != EINTR && errno != ENOBUFS && errno != ENOMEM)
        _exit(0);
    return 0;
}

static void append(const void *data, size_t length)
{
    if (length)
        memcpy(buffered + buffered_length, data, length);
    buffered_length += length;
}

void wire_send2(enum frame_type type, const void *first, size_t first_length, const void *second, size_t second_length)
{
    struct header header = {(uint32_t)(first_length + second_length), (char)type};
    size_t length = sizeof header + first_length + second_length;
    if (length > sizeof buffered - buffered_length)
        wire_flush();
    if (length > sizeof buffered) {
        struct iovec parts[3] = {
            {&header, sizeof header}, {(void *)first, first_length}, {(void *)second, second_length}};
        send_to_worker(parts, 3);
        return;
    }
    append(&header, sizeof header);
    append(first, first_length);
    append(second, second_length);
}

void wire_send(enum frame_type type, const void *payload, size_t length)
{
    wire_send2(type, payload, length, NULL, 0);
}

void wire_send_ready(const struct ready_report *report)
{
    wire_send(FRAME_READY, report, sizeof *report);
    wire_flush();
}

void wire_send_done(int is_clean)
{
    uint8_t byte = (uint8_t)is_clean;
    wire_send(FRAME_DONE, &byte, 1);
}

/* ---- receiving ---------------------------------------------------------------------------------------- */

static void receive_exactly(void *buffer, size_t length)
{
    char *at = buffer;
    while (length) {
        ssize_t got = recv(worker, at, length, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(0);
        at += got;
        length -= (size_t)got;
    }
}

enum frame_type wire_receive(uint8_t **payload, size_t *length)
{
    struct header header;
    receive_exactly(&header, sizeof header);
    errno = 0;
    if (header.length > MAX_FRAME)
        die("frame of %u bytes (limit %u)", header.length, MAX_FRAME);
    *length = header.length;
    *payload = malloc(header.length + 1u);
    if (!*payload)
        die("no memory for a frame");
    receive_exactly(*payload, header.length);
    (*payload)[header.length] = 0; /* so that the last string is always terminated */
    return (enum frame_type)header.type;
}
