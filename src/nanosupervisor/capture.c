/* See capture.h. */
#define _GNU_SOURCE
#include "capture.h"
#include "live.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PIPE_BYTES (1 << 20) /* the default of /proc/sys/fs/pipe-max-size; an empty pipe takes no memory */
#define CHUNK LIVE_MAX

int capture_pipe(int ends[2])
{
    if (pipe2(ends, O_CLOEXEC))
        return -1;
    /* If the host allows less, or this user has many pipes already, the pipe keeps its size. */
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
    return 0;
}

void capture_open(struct capture *capture, enum frame_type type, int from, uint32_t bytes, int is_live)
{
    /* mmap, so that only used pages take memory, and munmap returns all of it. */
    char *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        die("no memory for output");
    if (from >= 0)
        fcntl(from, F_SETFL, O_NONBLOCK);
    *capture = (struct capture){.from = from,
                                .type = type,
                                .is_live = is_live,
                                .head_room = bytes - bytes / 2,
                                .tail_room = bytes / 2,
                                .head = room,
                                .tail = room + (bytes - bytes / 2)};
}

static void append(struct capture *capture, const char *data, size_t length)
{
    if (capture->total < capture->head_room) {
        size_t part = capture->head_room - (size_t)capture->total;
        part = part < length ? part : length;
        memcpy(capture->head + capture->total, data, part);
        capture->total += part;
        data += part;
        length -= part;
    }
    if (length > capture->tail_room) { /* only the last bytes can still be in the tail at the end */
        size_t skipped = length - capture->tail_room;
        capture->total += skipped;
        data += skipped;
        length = capture->tail_room;
    }
    while (length) {
        size_t at = (size_t)((capture->total - capture->head_room) % capture->tail_room);
        size_t part = capture->tail_room - at;
        part = part < length ? part : length;
        memcpy(capture->tail + at, data, part);
        capture->total += part;
        data += part;
        length -= part;
    }
}

int capture_read(struct capture *capture)
{
    static char buffer[CHUNK];
    if (capture->from < 0)
        return 0;
    ssize_t got = read(capture->from, buffer, sizeof buffer);
    if (got > 0) {
        if (capture->is_live)
            live_send(capture->type, capture->total, buffer, (size_t)got);
        append(capture, buffer, (size_t)got);
        return 1;
    }
    if (got < 0 && errno == EINTR)
        return 1;
    if (got == 0) {
        close(capture->from);
        capture->from = -1;
    }
    return 0;
}

uint32_t capture_kept(const struct capture *capture)
{
    uint64_t room = capture->head_room + capture->tail_room;
    return (uint32_t)(capture->total < room ? capture->total : room);
}

/* The number of bytes of the stream that are in the head. */
static uint64_t head_end(const struct capture *capture)
{
    return capture->total < capture->head_room ? capture->total : capture->head_room;
}

/* The position of the oldest byte in the tail. */
static uint64_t tail_start(const struct capture *capture)
{
    uint64_t after_head = capture->total - head_end(capture);
    return after_head > capture->tail_room ? capture->total - capture->tail_room : head_end(capture);
}

size_t capture_unsent(const struct capture *capture)
{
    uint64_t head = head_end(capture), tail = tail_start(capture), sent = capture->sent;
    size_t in_head = sent < head ? (size_t)(head - sent) : 0;
    return in_head + (size_t)(capture->total - (sent > tail ? sent : tail));
}

size_t capture_send_unsent(struct capture *capture, size_t most)
{
    uint64_t at = capture->sent, end = head_end(capture);
    const char *data = capture->head + at;
    if (at >= end) {
        at = at > tail_start(capture) ? at : tail_start(capture);
        size_t in_ring = (size_t)((at - capture->head_room) % capture->tail_room);
        data = capture->tail + in_ring;
        end = at + (capture->tail_room - in_ring);
        end = end < capture->total ? end : capture->total;
    }
    size_t length = end - at < most ? (size_t)(end - at) : most;
    length = length < LIVE_MAX ? length : LIVE_MAX;
    if (!length)
        return 0;
    live_send(capture->type, at, data, length);
    capture->sent = at + length;
    return length;
}

void capture_skip_unsent(struct capture *capture, size_t most)
{
    if (capture->total - capture->sent > most)
        capture->sent = capture->total - most;
}

static void send_chunks(enum frame_type type, const char *data, size_t length)
{
    while (length) {
        size_t part = length < CHUNK ? length : CHUNK;
        wire_send(type, data, part);
        data += part;
        length -= part;
    }
}

void capture_send_and_free(struct capture *capture)
{
    uint64_t total = capture->total;
    size_t head = total < capture->head_room ? (size_t)total : capture->head_room;
    send_chunks(capture->type, capture->head, head);
    uint64_t after_head = total - head;
    if (after_head <= capture->tail_room) {
        send_chunks(capture->type, capture->tail, (size_t)after_head);
    } else {
        size_t oldest = (size_t)(after_head % capture->tail_room);
        send_chunks(capture->type, capture->tail + oldest, capture->tail_room - oldest);
        send_chunks(capture->type, capture->tail, oldest);
    }
    if (capture->from >= 0)
        close(capture->from);
    munmap(capture->head, capture->head_room + capture->tail_room);
}
