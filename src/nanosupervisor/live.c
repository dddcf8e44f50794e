/* See live.h. The supervisor serves one run at a time, so there is one frame. */
#define _GNU_SOURCE
#include "live.h"

#include <string.h>

static struct __attribute__((packed)) {
    uint32_t length;
    char type;
    struct live_header header;
    char data[LIVE_MAX];
} frame;
static size_t frame_bytes, sent_bytes;

#define FRAME_HEADER offsetof(__typeof__(frame), header) /* as in wire.c */

int live_is_behind(void)
{
    return sent_bytes < frame_bytes;
}

void live_resume(void)
{
    if (live_is_behind())
        sent_bytes += wire_send_now((const char *)&frame + sent_bytes, frame_bytes - sent_bytes);
}

void live_finish(void)
{
    if (live_is_behind())
        wire_send_raw((const char *)&frame + sent_bytes, frame_bytes - sent_bytes);
    sent_bytes = frame_bytes;
}

void live_send(enum frame_type stream, uint64_t position, const char *data, size_t length)
{
    live_finish();
    frame.length = (uint32_t)(sizeof frame.header + length);
    frame.type = FRAME_LIVE;
    frame.header = (struct live_header){(char)stream, position};
    memcpy(frame.data, data, length);
    frame_bytes = FRAME_HEADER + frame.length;
    sent_bytes = 0;
    live_resume();
}
