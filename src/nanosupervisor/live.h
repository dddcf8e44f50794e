/* Sends the output of a run to the worker while the program runs, if the request asks for that.
 *
 * With LIVE_LOSSLESS, no output is lost: while the worker does not receive, the streams are not read, and the program
 * waits as with a full pipe. With LIVE_LIMITED, the streams are always read: follow.h. The supervisor itself waits in
 * neither mode, so it enforces all limits meanwhile. */
#ifndef LIVE_H
#define LIVE_H

#include "wire.h"

#include <stddef.h>
#include <stdint.h>

/* Whether a frame is not sent completely. Until then no other frame can be sent without waiting. */
int live_is_behind(void);
/* Send output as FRAME_LIVE, or as much of it as the worker receives now. `position` is the number of bytes of the
 * stream before it. A frame that is not sent completely is sent first. `length` is at most LIVE_MAX. */
void live_send(enum frame_type stream, uint64_t position, const char *data, size_t length);
/* The worker receives again: send more of the frame. */
void live_resume(void);
/* Send the rest of the frame, and wait until the worker has received it. */
void live_finish(void);

#define LIVE_MAX (64u * 1024u)

#endif
