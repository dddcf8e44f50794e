/* One run, from the request to the report. */
#ifndef RUN_H
#define RUN_H

#include "capture.h"
#include "follow.h"
#include "input.h"
#include "job.h"
#include "wire.h"
#include "writable.h"

#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct level;

struct run {
    struct run_request request;
    char **arguments, **environment;
    const char *strings; /* arguments and environment again, as a pre-created process receives them */
    struct job job;      /* the header of `strings` */
    const char *payload;
    const struct writable_dirs *dirs;
    struct input in;
    struct capture out, err;
    struct follow follow;
    uint64_t started_us;        /* on CLOCK_MONOTONIC */
    struct timespec started_at; /* on CLOCK_REALTIME_COARSE, the clock of file times */
    int kill_requested;
    int ended; /* the program has ended, and the report has its wait status */
    struct exit_report report;
};

/* Serve a RUN frame: start the program, watch it to its end, report, and make everything ready for the
 * next run. */
void run_serve(const struct level *level, uint8_t *frame, size_t length);

/* The time on CLOCK_MONOTONIC, µs. */
uint64_t run_clock_us(void);
/* Called by a level: note that the program starts now. */
void run_note_start(struct run *run);
/* Called by a level: set the directories of the run, and write the payload's file; return 0 or an errno. */
uint32_t run_write_payload(struct run *run, const struct writable_dirs *dirs);
/* Called by a level: take over the other ends of the program's standard streams. */
void run_open_streams(struct run *run, int in, int out, int err);
/* Called by a level: note that the program has ended with this wait status. */
void run_note_end(struct run *run, int status);

#endif
