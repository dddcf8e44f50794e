/* What a run prints: of each stream the head and the tail are kept, everything is counted. */
#ifndef CAPTURE_H
#define CAPTURE_H

#include <stddef.h>
#include <stdint.h>

struct capture {
    int from; /* the pipe's end, -1 once it has ended */
    char type;
    size_t head_room, tail_room;
    uint64_t total;
    char *head, *tail; /* the tail is a ring; its place for byte n of the stream is fixed by n */
};

/* A pipe for a stream, as large as an ordinary user may have one; 0 or -1. A program that writes without waiting for
 * room, and then ends, loses output that does not fit. */
int capture_pipe(int ends[2]);
/* Begin to keep at most that many bytes; `from` becomes non-blocking. -1: there is no stream. */
void capture_open(struct capture *capture, char type, int from, uint32_t bytes);
/* Read once; 0 when the stream has ended or has nothing now. */
int capture_read(struct capture *capture);
/* How many bytes are kept. */
uint32_t capture_kept(const struct capture *capture);
/* Send what is kept as frames of the stream's type, and let go of everything. */
void capture_send_and_free(struct capture *capture);

#endif
