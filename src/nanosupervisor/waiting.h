/* The sandboxes that wait for runs, in the order in which runs will use them. Each is in one of the stages of
 * sandbox.h.
 *
 * Two sandboxes of a container exist: the run has one, and one waits for the next run. Between runs both wait. After
 * a run its sandbox is replaced. The next run does not wait for that, because the other sandbox is ready. So during
 * a run a sandbox is created only if runs follow each other faster than sandboxes can be created. The worker
 * measures the memory of the container when both wait, and does not charge it to a run (docs/adr/0025).
 *
 * Standby processes are large. While the runs of a container do not follow each other closely, only one waits, and it
 * is created after the run (docs/adr/0036). */
#ifndef WAITING_H
#define WAITING_H

#include "confine.h"
#include "importer.h"
#include "interpreter.h"
#include "sandbox.h"
#include "sandbox_mounts.h"

#include <poll.h>
#include <stddef.h>

#define MAX_WAITING 2

/* The number of descriptors that waiting_watch() adds at most. */
#define WAITING_EVENTS (MAX_WAITING * SANDBOX_EVENTS + 1 + IMPORTER_EVENTS)

/* What the next sandboxes are for. If the interpreter does not start, a process of KIND_EXEC waits instead: programs
 * then start more slowly, but give the same results. */
struct purpose {
    enum kind kind;
    struct confinement confinement;
};

/* Set the limits that are the same for all sandboxes of the container. */
void waiting_set_up(const struct work_limits *work);
const struct work_limits *waiting_limits(void);
/* Begin to create sandboxes for this purpose until `count` exist. Those that have failed are replaced. */
void waiting_fill(size_t count, const struct purpose *purpose);
/* Have the code mounted into all sandboxes that wait, and into later ones, as soon as possible. */
void waiting_attach_code(void);
/* Discard all sandboxes. */
void waiting_discard(void);

/* Write the descriptors with the next messages to `events`, and return their number. */
size_t waiting_watch(struct pollfd events[WAITING_EVENTS]);
/* Take all steps that need no waiting. */
void waiting_advance(void);
/* Whether a sandbox has failed, and waiting_fill() would replace it. */
int waiting_has_failed(void);
/* Whether a run can use the first sandbox now. Without code, a sandbox is complete when its process waits. */
int waiting_is_ready(void);
/* Whether the first sandbox has failed although the worker has its listening sockets. The worker may be about to start
 * a run with these sockets, so another sandbox cannot take its place. */
int waiting_was_lost(void);
/* Wait until all sandboxes are complete. Those that fail are replaced. */
void waiting_complete(void);
/* The number of sandboxes, and their purpose. */
size_t waiting_count(void);
struct purpose waiting_purpose(void);
int waiting_is_for(const struct purpose *purpose);
/* Send the listening sockets of the first sandbox to the worker, for the next run. Call this when the first sandbox
 * is complete, before the worker hears that it can start a run. */
void waiting_hand_over(void);
/* Remove the first sandbox, which must be complete, from those that wait. The caller owns it from now on. */
struct sandbox waiting_take(void);

#endif
