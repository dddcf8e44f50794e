/* See run.h. */
#define _GNU_SOURCE
#include "run.h"
#include "activity.h"
#include "level.h"
#include "live.h"
#include "outputs.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_CAPTURE (16u << 20)
#define MAX_STRINGS 65536u
/* A connection that the program has not accepted takes 2.6 KB of kernel memory, which no control group
 * counts. A run can make 28,000 of them in a second. So the number of a run's sockets is limited, and such
 * connections count as sockets. Ordinary programs stay below the limit. */
#define MAX_RUN_SOCKETS 16384u
#define MAX_NETLINK_BYTES (4u << 20)
#define KERNEL_CHECK_US 100000u /* time between two checks of these two limits */

uint64_t run_clock_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_nsec / 1000u;
}

/* ---- the start ---------------------------------------------------------------------------------------- */

void run_note_start(struct run *run)
{
    run->started_us = run_clock_us();
    /* The clock of file times advances in ticks of up to 10 ms. A precise start could be later than the
     * time of a file that the run writes. */
    clock_gettime(CLOCK_REALTIME_COARSE, &run->started_at);
}

uint32_t run_write_payload(struct run *run, const struct writable_dirs *dirs)
{
    run->dirs = dirs;
    return (uint32_t)input_write_file(dirs, run->payload, run->request.payload_bytes);
}

void run_open_streams(struct run *run, int in, int out, int err)
{
    input_open(&run->in, in, run->payload, run->request.payload_bytes);
    const struct run_request *request = &run->request;
    capture_open(&run->out, FRAME_STDOUT, out, request->capture_bytes, request->live == LIVE_LOSSLESS);
    capture_open(&run->err, FRAME_STDERR, err, request->capture_bytes, request->live == LIVE_LOSSLESS);
    follow_open(&run->follow, request->live_bytes_per_s, request->live == LIVE_LIMITED, run_clock_us());
}

/* Return pointers to `count` NUL-terminated strings at `at`, and move `at` behind them. Return NULL if a
 * string is missing, or `count` is too large. */
static char **strings_at(char **at, const char *end, uint32_t count)
{
    char **strings = count < MAX_STRINGS ? calloc(count + 1u, sizeof *strings) : NULL;
    for (uint32_t i = 0; strings && i < count; i++) {
        char *stop = memchr(*at, 0, (size_t)(end - *at));
        if (!stop)
            return NULL;
        strings[i] = *at;
        *at = stop + 1;
    }
    return strings;
}

static void parse_request(struct run *run, uint8_t *frame, size_t length)
{
    struct run_request *request = &run->request;
    char *at = (char *)frame + sizeof *request, *end = (char *)frame + length;
    if (length < sizeof *request)
        die("short run request");
    memcpy(request, frame, sizeof *request);
    run->strings = at;
    run->arguments = strings_at(&at, end, request->argument_count);
    run->environment = run->arguments ? strings_at(&at, end, request->environment_count) : NULL;
    run->job = (struct job){(uint32_t)(at - run->strings), request->argument_count, request->environment_count};
    if (!run->environment || !request->argument_count || request->payload_bytes != (size_t)(end - at) ||
        request->capture_bytes < 2 || request->capture_bytes > MAX_CAPTURE)
        die("malformed run request");
    run->payload = at;
}

/* ---- the kernel memory of the run's sockets ----------------------------------------------------------- */

/* Return the number of sockets in the run's network, including connections that wait to be accepted. */
static unsigned long count_sockets(const struct level *level)
{
    char text[64];
    unsigned long used = 0;
    activity_read_network_file(level->network_process(), "sockstat", text, sizeof text);
    return sscanf(text, "sockets: used %lu", &used) == 1 ? used : 0;
}

/* Return the bytes of unread answers in the run's netlink sockets. */
static unsigned long count_netlink_bytes(const struct level *level)
{
    char text[8192];
    unsigned long total = 0, bytes;
    activity_read_network_file(level->network_process(), "netlink", text, sizeof text);
    for (const char *line = strchr(text, '\n'); line; line = strchr(line + 1, '\n'))
        if (sscanf(line, " %*s %*s %*s %*s %lu", &bytes) == 1)
            total += bytes;
    return total;
}

static int holds_too_much_kernel_memory(const struct level *level)
{
    return count_sockets(level) > MAX_RUN_SOCKETS ||
           (level->has_netlink && count_netlink_bytes(level) > MAX_NETLINK_BYTES);
}

/* ---- watching the program to its end ------------------------------------------------------------------ */

/* The next time at which each limit must be enforced, on the clock of run_clock_us(). */
struct schedule {
    uint64_t deadline;
    uint64_t kill_at; /* UINT64_MAX until SIGTERM has been sent */
    uint64_t kernel_check_at;
};

static uint64_t earlier(uint64_t one, uint64_t other)
{
    return one < other ? one : other;
}

static uint64_t next_time(const struct schedule *schedule, const struct run *run)
{
    uint64_t limit = schedule->kill_at != UINT64_MAX ? schedule->kill_at : schedule->deadline;
    uint64_t output = follow_next_us(&run->follow, &run->out, &run->err);
    return earlier(earlier(limit, output), schedule->kernel_check_at);
}

static void read_frame_during_run(struct run *run)
{
    uint8_t *payload;
    size_t length;
    enum frame_type type = wire_receive(&payload, &length);
    if (type == FRAME_KILL)
        run->kill_requested = 1;
    if (type == FRAME_FOLLOW && length && run->request.live != LIVE_LOSSLESS)
        run->follow.is_on = payload[0];
    free(payload);
}

/* Whether the streams are not read, because no output may be lost. */
static int output_waits(const struct run *run)
{
    return run->request.live == LIVE_LOSSLESS && live_is_behind();
}

/* Wait until a descriptor of the run is ready, but not longer than `until`. Serve the ready descriptors. */
static void serve_descriptors(struct run *run, const struct level *level, uint64_t until)
{
    enum { OUT, ERR, WORKER, IN, LEVEL, EVENTS = LEVEL + LEVEL_EVENTS };
    uint64_t now = run_clock_us(), wait_us = until > now ? until - now : 0;
    struct timespec wait = {(time_t)(wait_us / 1000000u), (long)(wait_us % 1000000u) * 1000};
    struct pollfd events[EVENTS] = {
        [OUT] = {output_waits(run) ? -1 : run->out.from, POLLIN, 0},
        [ERR] = {output_waits(run) ? -1 : run->err.from, POLLIN, 0},
        [WORKER] = {wire_fd(), live_is_behind() ? POLLIN | POLLOUT : POLLIN, 0},
        [IN] = {run->in.to, POLLOUT, 0},
    };
    size_t level_events = level->watch(events + LEVEL);
    if (ppoll(events, LEVEL + level_events, &wait, NULL) < 0 && errno != EINTR)
        die("poll");
    if (events[OUT].revents)
        capture_read(&run->out);
    if (events[ERR].revents && !output_waits(run))
        capture_read(&run->err);
    if (events[IN].revents)
        input_feed(&run->in);
    if (events[WORKER].revents & POLLOUT)
        live_resume();
    if (events[WORKER].revents & ~POLLOUT)
        read_frame_during_run(run);
    if (run->follow.is_on)
        follow_send(&run->follow, &run->out, &run->err, run_clock_us());
    for (size_t i = 0; i < level_events; i++)
        if (events[LEVEL + i].revents) {
            level->serve(run);
            break;
        }
}

/* Send SIGTERM if the deadline has passed, and return whether the run must be killed now. */
static int enforce_limits(struct run *run, const struct level *level, struct schedule *schedule)
{
    uint64_t now = run_clock_us();
    if (run->kill_requested) {
        run->report.flags |= EXIT_KILLED;
        return 1;
    }
    if (now >= schedule->kill_at)
        return 1;
    if (now >= schedule->kernel_check_at) {
        if (holds_too_much_kernel_memory(level)) {
            run->report.flags |= EXIT_SOCKETS;
            return 1;
        }
        schedule->kernel_check_at = now + KERNEL_CHECK_US;
    }
    if (now >= schedule->deadline && schedule->kill_at == UINT64_MAX) {
        run->report.flags |= EXIT_TIMED_OUT | activity_flags(level->network_process());
        level->terminate();
        schedule->kill_at = now + (uint64_t)run->request.grace_ms * 1000u;
    }
    return 0;
}

/* Wait until the program has ended or the run must be killed. */
static void watch(struct run *run, const struct level *level)
{
    struct schedule schedule = {
        .deadline = run->started_us + (uint64_t)run->request.timeout_ms * 1000u,
        .kill_at = UINT64_MAX,
        .kernel_check_at = run->started_us + KERNEL_CHECK_US,
    };
    do
        serve_descriptors(run, level, next_time(&schedule, run));
    while (!run->ended && !enforce_limits(run, level, &schedule));
}

void run_note_end(struct run *run, int status)
{
    run->report.wait_status = (uint32_t)status;
    run->ended = 1;
}

static void read_rest_of_output(struct run *run)
{
    input_close(&run->in);
    while (capture_read(&run->out))
        ;
    while (capture_read(&run->err))
        ;
    follow_finish(&run->follow, &run->out, &run->err);
    live_finish();
}

/* ---- the report --------------------------------------------------------------------------------------- */

static uint64_t microseconds_between(const struct timeval *before, const struct timeval *after)
{
    return (uint64_t)((after->tv_sec - before->tv_sec) * 1000000 + (after->tv_usec - before->tv_usec));
}

/* Add the CPU time of the children that were reaped since `before` was read. */
static void add_cpu_time(struct exit_report *report, const struct rusage *before)
{
    struct rusage after;
    getrusage(RUSAGE_CHILDREN, &after);
    report->user_us += microseconds_between(&before->ru_utime, &after.ru_utime);
    report->system_us += microseconds_between(&before->ru_stime, &after.ru_stime);
}

/* Whether the program probably failed because a file reached the maximum size. */
static int has_hit_file_limit(const struct run *run)
{
    const struct run_request *request = &run->request;
    int status = (int)run->report.wait_status;
    return (WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ) ||
           (status != 0 && writable_has_file_of(run->dirs, request->file_size_bytes, request->payload_bytes,
                                                &run->started_at));
}

static void complete_report(struct run *run, const struct rusage *before)
{
    struct exit_report *report = &run->report;
    if (report->exec_error)
        report->flags |= EXIT_NOT_STARTED;
    add_cpu_time(report, before);
    if (writable_is_full(run->dirs))
        report->flags |= EXIT_DISK_FULL;
    if (has_hit_file_limit(run))
        report->flags |= EXIT_FILE_LIMIT;
    report->stdout_total = run->out.total;
    report->stderr_total = run->err.total;
    report->stdout_kept = capture_kept(&run->out);
    report->stderr_kept = capture_kept(&run->err);
}

void run_serve(const struct level *level, uint8_t *frame, size_t length)
{
    struct run run = {0};
    struct rusage before;
    parse_request(&run, frame, length);
    getrusage(RUSAGE_CHILDREN, &before);

    run.report.exec_error = level->start(&run);
    if (!run.report.exec_error)
        watch(&run, level);
    run.report.wall_us = run_clock_us() - run.started_us;
    level->kill_run(&run);
    read_rest_of_output(&run);

    complete_report(&run, &before);
    wire_send(FRAME_EXIT, &run.report, sizeof run.report);
    capture_send_and_free(&run.out);
    capture_send_and_free(&run.err);
    outputs_send(run.dirs, &run.request);

    level->finish(&run);
    free(run.arguments);
    free(run.environment);
}
