/* See descriptors.h. Used by the supervisor and, in the Python image, by the zygote's extension module. */
#define _GNU_SOURCE
#include "descriptors.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* A control message is read and written at an address that is aligned for its header. cmsg(3) */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
};

int descriptors_send(int to, const void *bytes, size_t length, const int *descriptors, size_t count, int flags)
{
    union control control = {0};
    struct iovec part = {(void *)bytes, length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof *descriptors);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(count * sizeof *descriptors);
        memcpy(CMSG_DATA(&control.header), descriptors, count * sizeof *descriptors);
    }
    return sendmsg(to, &message, flags | MSG_NOSIGNAL) < 0 ? -1 : 0;
}

ssize_t descriptors_receive(int from, void *bytes, size_t length, int *descriptors, size_t room, size_t *count,
                            int flags)
{
    union control control;
    struct iovec part = {bytes, length};
    struct msghdr message;
    ssize_t got;
    do {
        /* CMSG_LEN, because the padding of CMSG_SPACE would have room for one descriptor more. */
        message = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                                  .msg_controllen = CMSG_LEN(room * sizeof *descriptors)};
        got = recvmsg(from, &message, flags | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    *count = 0;
    struct cmsghdr *header = got < 0 ? NULL : CMSG_FIRSTHDR(&message);
    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        return got;
    *count = (header->cmsg_len - CMSG_LEN(0)) / sizeof *descriptors;
    memcpy(descriptors, CMSG_DATA(header), *count * sizeof *descriptors);
    if (message.msg_flags & MSG_CTRUNC)
        while (*count)
            close(descriptors[--*count]);
    return got;
}
