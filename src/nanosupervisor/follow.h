/* Sends the output of a run to the worker while somebody follows the run (LIVE_LIMITED).
 *
 * The program never waits for a follower. A token bucket limits the bytes, and frames are sent at most every 20 ms, so
 * that a program that prints much costs the worker little. Output that waits for its turn is in the capture of its
 * stream (capture.h). So no other memory is needed, and following can begin in the middle of a run: the head and the
 * tail are sent then. Output that the capture does not keep is skipped. Each frame has its position, so the worker
 * knows how much was skipped, and where. */
#ifndef FOLLOW_H
#define FOLLOW_H

#include "capture.h"

#include <stdint.h>

struct follow {
    int is_on;
    uint32_t bytes_per_s;
    uint64_t tokens;     /* bytes that may be sent now */
    uint64_t counted_us; /* when the tokens were counted */
    uint64_t next_us;    /* no frame is sent earlier */
    int err_is_first;    /* the streams take turns */
};

/* Begin with a full bucket. The times are those of run_clock_us(). */
void follow_open(struct follow *follow, uint32_t bytes_per_s, int is_on, uint64_t now);
/* Send as much as is allowed now. */
void follow_send(struct follow *follow, struct capture *out, struct capture *err, uint64_t now);
/* When to call follow_send() if no output arrives; UINT64_MAX: not at all. */
uint64_t follow_next_us(const struct follow *follow, const struct capture *out, const struct capture *err);
/* The program has ended: send the end of each stream, which has the reason of most failures, whatever the limit. */
void follow_finish(const struct follow *follow, struct capture *out, struct capture *err);

#endif
