/* The output of a run: the head and the tail of each stream are kept, and all bytes are counted. */
#ifndef CAPTURE_H
#define CAPTURE_H

#include "wire.h"

#include <stddef.h>
#include <stdint.h>

struct capture {
    int from; /* the pipe's read end; -1 once the stream has ended */
    enum frame_type type;
    int is_live; /* whether all output is also sent when it is read */
    size_t head_room, tail_room;
    uint64_t total;
    uint64_t sent; /* output before this position was sent or skipped by capture_send_unsent() */
    char *head, *tail; /* the tail is a ring buffer: a byte's position depends on its number in the stream */
};

/* Create a pipe for a stream; 0, or -1 with errno. The pipe holds 1 MiB, or less if the host does not allow that.
 * It is large because of programs that make their output non-blocking. When such a program ends, it loses the
 * output that does not fit into the pipe. */
int capture_pipe(int ends[2]);
/* Start to capture the stream and keep at most `bytes` bytes of it. `from` becomes non-blocking; -1 means
 * that there is no stream. If `is_live`, also send the output with live_send() when it is read. */
void capture_open(struct capture *capture, enum frame_type type, int from, uint32_t bytes, int is_live);
/* Read once; 0 if the stream has ended or has no bytes now. */
int capture_read(struct capture *capture);
/* The number of bytes that are kept. */
uint32_t capture_kept(const struct capture *capture);
/* The number of kept bytes that capture_send_unsent() can send. */
size_t capture_unsent(const struct capture *capture);
/* Send the oldest of these bytes with live_send(), at most `most`; return their number, which is also smaller at the
 * end of the head and of the ring. Bytes that are not kept any more are skipped. */
size_t capture_send_unsent(struct capture *capture, size_t most);
/* Skip the unsent bytes except the last `most`. */
void capture_skip_unsent(struct capture *capture, size_t most);
/* Send the kept bytes as frames of the stream's type, close the pipe, and free the memory. */
void capture_send_and_free(struct capture *capture);

#endif
