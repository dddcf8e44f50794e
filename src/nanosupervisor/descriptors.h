/* Messages that carry file descriptors over a Unix socket: SCM_RIGHTS, unix(7). */
#ifndef DESCRIPTORS_H
#define DESCRIPTORS_H

#include <stddef.h>
#include <sys/types.h>

#define MAX_DESCRIPTORS 32u /* in one message */

/* Send one message of at least one byte with at most MAX_DESCRIPTORS descriptors; 0, or -1 with errno. The
 * sender keeps its own copies. The flags are those of sendmsg(2); MSG_NOSIGNAL is added. */
int descriptors_send(int to, const void *bytes, size_t length, const int *descriptors, size_t count, int flags);

/* Receive one message of at most `length` bytes; the result is that of recvmsg(2). Up to `room`
 * descriptors arrive close-on-exec, and `count` is set to their number. If the message has more
 * descriptors, all of them are closed. The flags are those of recvmsg(2); MSG_CMSG_CLOEXEC is added. */
ssize_t descriptors_receive(int from, void *bytes, size_t length, int *descriptors, size_t room, size_t *count,
                            int flags);

#endif
