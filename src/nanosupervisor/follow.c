/* See follow.h. */
#include "follow.h"
#include "live.h"

#define PAUSE_US 20000u
#define END_BYTES LIVE_MAX /* of each stream */

void follow_open(struct follow *follow, uint32_t bytes_per_s, int is_on, uint64_t now)
{
    *follow = (struct follow){.is_on = is_on, .bytes_per_s = bytes_per_s, .tokens = bytes_per_s, .counted_us = now};
}

/* The bucket holds the tokens of one second. */
static void count_tokens(struct follow *follow, uint64_t now)
{
    uint64_t elapsed_us = now - follow->counted_us;
    elapsed_us = elapsed_us < 1000000u ? elapsed_us : 1000000u;
    follow->tokens += elapsed_us * follow->bytes_per_s / 1000000u;
    if (follow->tokens > follow->bytes_per_s)
        follow->tokens = follow->bytes_per_s;
    follow->counted_us = now;
}

/* When the bucket is empty, wait for the tokens of a quarter of a second, because many small pieces with gaps between
 * them are hard to read. */
static size_t send_part(struct follow *follow, struct capture *capture)
{
    uint64_t unsent = capture_unsent(capture), least = follow->bytes_per_s / 4;
    if (live_is_behind() || follow->tokens < (unsent < least ? unsent : least))
        return 0;
    size_t sent = capture_send_unsent(capture, (size_t)follow->tokens);
    follow->tokens -= sent;
    return sent;
}

void follow_send(struct follow *follow, struct capture *out, struct capture *err, uint64_t now)
{
    if (!follow->is_on || live_is_behind() || now < follow->next_us || !(capture_unsent(out) + capture_unsent(err)))
        return;
    count_tokens(follow, now);
    send_part(follow, follow->err_is_first ? err : out);
    send_part(follow, follow->err_is_first ? out : err);
    follow->err_is_first = !follow->err_is_first;
    follow->next_us = now + PAUSE_US;
}

uint64_t follow_next_us(const struct follow *follow, const struct capture *out, const struct capture *err)
{
    int has_output = follow->is_on && capture_unsent(out) + capture_unsent(err);
    return has_output && !live_is_behind() ? follow->next_us : UINT64_MAX;
}

static void send_end(struct capture *capture)
{
    capture_skip_unsent(capture, END_BYTES);
    while (capture_send_unsent(capture, LIVE_MAX))
        ;
}

void follow_finish(const struct follow *follow, struct capture *out, struct capture *err)
{
    if (!follow->is_on)
        return;
    send_end(out);
    send_end(err);
}
