/* nanosupervisor: process 1 of every container. It runs one program at a time and leaves nothing of it.
 *
 * Theory of operation
 * -------------------
 * The container has a read-only root, no network, no capability, an ordinary user id of its own, and small
 * tmpfs mounts that it may write to. The agent binds one folder into it, read-only: /slot, with a socket and,
 * once the container belongs to a function, its code (/slot/code) or built program (/slot/program).
 *
 *   start    connect to /slot/agent.sock (the agent takes one connection and removes the socket), HELLO
 *   PREPARE  copy the code to /work -> READY
 *   RUN      write the payload, start the program -> STARTED; watch it to its end -> EXIT, STDOUT, STDERR;
 *            send what it left in /output -> FILE, DATA, REFUSED; wipe -> DONE; copy the code again -> READY
 *   KILL     during a run: end it now
 *
 * A run has ended when its first process has. Everything else is then killed: as process 1 of the namespace,
 * kill(-1) reaches all and only the run's processes, and they cannot be adopted by anyone but us. The agent
 * closing the connection, for whatever reason, ends the supervisor and with it the whole container.
 *
 * The program runs under the supervisor's own user id (docs/adr/0003): the container holds no capability with
 * which there could be another. What keeps it from harming the supervisor is said in filter.c.
 *
 * Read in this order: wire.h, here from main() upward, tree.c, filter.c. */
#define _GNU_SOURCE
#include "filter.h"
#include "tree.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CAPTURE (16u << 20)
#define MAX_STRINGS 65536u

static int children = -1; /* signalfd: SIGCHLD */

static uint64_t now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_nsec / 1000u;
}

/* ---- output: the head and the tail are kept, everything is counted ------------------------------------ */

struct capture {
    int from; /* the pipe's end, -1 once it has ended */
    char type;
    size_t head_room, tail_room;
    uint64_t total;
    char *head, *tail; /* the tail is a ring; its place for byte n of the stream is fixed by n */
};

static void capture_open(struct capture *capture, char type, int from, uint32_t bytes)
{
    /* mmap, so that only what is used takes memory, and none of it stays afterwards. */
    char *room = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        die("no memory for output");
    *capture = (struct capture){.from = from,
                                .type = type,
                                .head_room = bytes - bytes / 2,
                                .tail_room = bytes / 2,
                                .head = room,
                                .tail = room + (bytes - bytes / 2)};
}

static void capture_append(struct capture *capture, const char *data, size_t length)
{
    if (capture->total < capture->head_room) {
        size_t part = capture->head_room - (size_t)capture->total;
        part = part < length ? part : length;
        memcpy(capture->head + capture->total, data, part);
        capture->total += part;
        data += part;
        length -= part;
    }
    if (length > capture->tail_room) { /* only the last of it can still be in the tail at the end */
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

/* Read once; a stream that has ended, or has nothing now, is no longer `ready`. */
static int capture_read(struct capture *capture)
{
    static char buffer[64 * 1024];
    ssize_t got = read(capture->from, buffer, sizeof buffer);
    if (got > 0) {
        capture_append(capture, buffer, (size_t)got);
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

static uint32_t capture_kept(const struct capture *capture)
{
    uint64_t room = capture->head_room + capture->tail_room;
    return (uint32_t)(capture->total < room ? capture->total : room);
}

static void send_chunks(char type, const char *data, size_t length)
{
    while (length) {
        size_t part = length < 64 * 1024 ? length : 64 * 1024;
        wire_send(type, data, part);
        data += part;
        length -= part;
    }
}

static void capture_send_and_free(struct capture *capture)
{
    uint64_t total = capture->total;
    size_t head = total < capture->head_room ? (size_t)total : capture->head_room;
    send_chunks(capture->type, capture->head, head);
    uint64_t behind_head = total - head;
    if (behind_head <= capture->tail_room) {
        send_chunks(capture->type, capture->tail, (size_t)behind_head);
    } else {
        size_t oldest = (size_t)(behind_head % capture->tail_room);
        send_chunks(capture->type, capture->tail + oldest, capture->tail_room - oldest);
        send_chunks(capture->type, capture->tail, oldest);
    }
    if (capture->from >= 0)
        close(capture->from);
    munmap(capture->head, capture->head_room + capture->tail_room);
}

/* ---- the program's process ---------------------------------------------------------------------------- */

struct run {
    struct run_request request;
    char **arguments, **environment;
    pid_t program;
    struct capture out, err;
    uint64_t started_us;
    int kill_requested;
    struct exit_report report;
};

static void limit(int resource, uint64_t value)
{
    struct rlimit both = {value, value};
    setrlimit(resource, &both);
}

static void write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
        if (write(file, text, strlen(text)) < 0)
            errno = 0; /* a host that forbids it loses one preference, not the run */
        close(file);
    }
}

/* In the child: become the program. Only returns by way of the status pipe. */
__attribute__((noreturn)) static void become_program(const struct run *run, int out, int err, int status)
{
    sigset_t none;
    sigemptyset(&none);
    setsid();
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    int in = open(PAYLOAD_FILE, O_RDONLY);
    if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0 || dup3(status, 3, O_CLOEXEC) < 0)
        goto failed;
    close_range(4, ~0u, 0);
    /* The supervisor is not dumpable, and a fork inherits that: /proc/self would belong to root. No process
     * of a run is alive yet that could look. */
    prctl(PR_SET_DUMPABLE, 1);
    write_file("/proc/self/oom_score_adj", "1000"); /* the kernel kills the run, never the supervisor */
    /* One byte, not none: with a core_pattern that is a pipe, 0 still runs the host's helper; 1 does not.
     * Into a file nothing is written below a page. fs/coredump.c */
    limit(RLIMIT_CORE, 1);
    limit(RLIMIT_FSIZE, run->request.file_size_bytes);
    limit(RLIMIT_NOFILE, run->request.open_files);
    limit(RLIMIT_MEMLOCK, 64 * 1024); /* locked pages cannot be reclaimed; the kernel's old default */
    limit(RLIMIT_MSGQUEUE, 0);
    umask(022);
    if (chdir(WORK_DIR) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || filter_install())
        goto failed;
    execve(run->arguments[0], run->arguments, run->environment);
failed:;
    uint32_t error = (uint32_t)errno;
    if (write(3, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}

/* Start the program; an errno when it could not be. */
static uint32_t start_program(struct run *run)
{
    int out[2], err[2], status[2];
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || pipe2(status, O_CLOEXEC))
        die("no pipes");
    run->started_us = now_us();
    run->program = fork();
    if (run->program == 0)
        become_program(run, out[1], err[1], status[1]);
    uint32_t error = run->program < 0 ? (uint32_t)errno : 0;
    close(out[1]);
    close(err[1]);
    close(status[1]);
    if (!error && read(status[0], &error, sizeof error) < 0)
        error = (uint32_t)errno;
    close(status[0]);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    fcntl(err[0], F_SETFL, O_NONBLOCK);
    capture_open(&run->out, FRAME_STDOUT, out[0], run->request.capture_bytes);
    capture_open(&run->err, FRAME_STDERR, err[0], run->request.capture_bytes);
    return error;
}

/* Reap whatever has ended; true once the program itself has. */
static int reap(struct run *run)
{
    int ended = 0, status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == run->program) {
            run->report.wait_status = (uint32_t)status;
            run->program = -1; /* its number may be another's from now on */
            ended = 1;
        }
    return ended;
}

static void read_request(struct run *run)
{
    uint8_t *payload;
    size_t length;
    /* All that the agent ever says during a run is KILL. */
    if (wire_receive(&payload, &length) == FRAME_KILL)
        run->kill_requested = 1;
    free(payload);
}

/* Wait until the program has ended, by itself or by our hand. */
static void watch_program(struct run *run)
{
    uint64_t kill_at = UINT64_MAX;
    uint64_t deadline = run->started_us + (uint64_t)run->request.timeout_ms * 1000u;
    int ended = 0;
    while (!ended) {
        uint64_t next = kill_at != UINT64_MAX ? kill_at : deadline, now = now_us();
        struct timespec wait = {0};
        if (next > now)
            wait = (struct timespec){(time_t)((next - now) / 1000000u), (long)((next - now) % 1000000u) * 1000};
        struct pollfd events[4] = {{run->out.from, POLLIN, 0},
                                   {run->err.from, POLLIN, 0},
                                   {children, POLLIN, 0},
                                   {wire_fd(), POLLIN, 0}};
        if (ppoll(events, 4, &wait, NULL) < 0 && errno != EINTR)
            die("poll");
        if (events[0].revents)
            capture_read(&run->out);
        if (events[1].revents)
            capture_read(&run->err);
        if (events[3].revents)
            read_request(run);
        if (events[2].revents) {
            struct signalfd_siginfo ignored;
            if (read(children, &ignored, sizeof ignored) < 0 && errno != EAGAIN)
                die("signalfd");
            ended = reap(run);
        }
        now = now_us();
        if (!ended && run->kill_requested) {
            run->report.flags |= EXIT_KILLED;
            return;
        }
        if (!ended && now >= kill_at)
            return;
        if (!ended && now >= deadline && kill_at == UINT64_MAX) {
            run->report.flags |= EXIT_TIMED_OUT;
            kill(-1, SIGTERM);
            kill_at = now + (uint64_t)run->request.grace_ms * 1000u;
        }
    }
}

/* Kill and reap every process but ourselves, then take what is still in the pipes. */
static void end_everything(struct run *run)
{
    int status;
    pid_t pid;
    kill(-1, SIGKILL);
    while ((pid = waitpid(-1, &status, 0)) > 0 || errno == EINTR) {
        if (pid == run->program)
            run->report.wait_status = (uint32_t)status;
        else if (pid > 0)
            run->report.left_over++;
    }
    while (run->out.from >= 0 && capture_read(&run->out))
        ;
    while (run->err.from >= 0 && capture_read(&run->err))
        ;
}

/* ---- a run from request to wiped ----------------------------------------------------------------------- */

/* Point at `count` NUL-terminated strings within the buffer; NULL when they are not all there. */
static char **strings_of(char **at, const char *end, uint32_t count)
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

static void parse_request(struct run *run, uint8_t *frame, size_t length, const char **payload)
{
    char *at = (char *)frame + sizeof run->request, *end = (char *)frame + length;
    if (length < sizeof run->request)
        die("short run request");
    memcpy(&run->request, frame, sizeof run->request);
    run->arguments = strings_of(&at, end, run->request.argument_count);
    run->environment = run->arguments ? strings_of(&at, end, run->request.environment_count) : NULL;
    if (!run->environment || !run->request.argument_count || run->request.payload_bytes != (size_t)(end - at) ||
        run->request.capture_bytes < 2 || run->request.capture_bytes > MAX_CAPTURE)
        die("malformed run request");
    *payload = at;
}

static void usage_between(const struct rusage *before, struct exit_report *report)
{
    struct rusage after;
    getrusage(RUSAGE_CHILDREN, &after);
    report->user_us = (uint64_t)((after.ru_utime.tv_sec - before->ru_utime.tv_sec) * 1000000 +
                                 (after.ru_utime.tv_usec - before->ru_utime.tv_usec));
    report->system_us = (uint64_t)((after.ru_stime.tv_sec - before->ru_stime.tv_sec) * 1000000 +
                                   (after.ru_stime.tv_usec - before->ru_stime.tv_usec));
}

static void judge_disk(struct run *run)
{
    struct exit_report *report = &run->report;
    int status = (int)report->wait_status;
    if (tree_is_full())
        report->flags |= EXIT_DISK_FULL;
    if ((WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ) ||
        (status != 0 && tree_has_file_of(run->request.file_size_bytes)))
        report->flags |= EXIT_FILE_LIMIT;
}

static void prepare(int copy_code)
{
    struct ready_report report = {0};
    if (copy_code)
        report = tree_copy_code();
    wire_send(FRAME_READY, &report, sizeof report);
}

static void serve_run(uint8_t *frame, size_t length)
{
    struct run run = {0};
    struct rusage before;
    const char *payload;
    parse_request(&run, frame, length, &payload);
    getrusage(RUSAGE_CHILDREN, &before);

    run.report.exec_error = (uint32_t)tree_write_payload(payload, run.request.payload_bytes);
    if (run.report.exec_error) {
        capture_open(&run.out, FRAME_STDOUT, -1, run.request.capture_bytes);
        capture_open(&run.err, FRAME_STDERR, -1, run.request.capture_bytes);
        run.started_us = now_us();
    } else {
        run.report.exec_error = start_program(&run);
    }
    if (run.report.exec_error) {
        run.report.flags |= EXIT_NOT_STARTED;
    } else {
        wire_send(FRAME_STARTED, NULL, 0);
        watch_program(&run);
    }
    run.report.wall_us = now_us() - run.started_us;
    end_everything(&run);
    usage_between(&before, &run.report);
    judge_disk(&run);
    run.report.stdout_total = run.out.total;
    run.report.stderr_total = run.err.total;
    run.report.stdout_kept = capture_kept(&run.out);
    run.report.stderr_kept = capture_kept(&run.err);
    wire_send(FRAME_EXIT, &run.report, sizeof run.report);
    capture_send_and_free(&run.out);
    capture_send_and_free(&run.err);
    tree_send_outputs(&run.request);

    uint8_t clean = (uint8_t)(tree_wipe() && tree_is_empty_again());
    wire_send(FRAME_DONE, &clean, 1);
    free(run.arguments);
    free(run.environment);
    if (run.request.prepare_next)
        prepare(1);
}

static void set_up(void)
{
    sigset_t blocked;
    errno = 0;
    if (getpid() != 1)
        die("must be process 1 of a container: kill(-1) is how a run ends");
    /* Not dumpable: a run, which has our user id, can neither trace us nor read our memory, descriptors
     * and environment. No handlers: the kernel drops every signal that a namespace's own processes send
     * to its process 1 by default action, SIGKILL and SIGSTOP included. pid_namespaces(7) */
    prctl(PR_SET_DUMPABLE, 0);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    children = signalfd(-1, &blocked, SFD_CLOEXEC | SFD_NONBLOCK);
    if (children < 0)
        die("signalfd");
    signal(SIGPIPE, SIG_IGN);
}

int main(void)
{
    set_up();
    tree_remember_empty();
    wire_connect("/slot/agent.sock");
    uint32_t version = PROTOCOL_VERSION;
    wire_send(FRAME_HELLO, &version, sizeof version);
    for (;;) {
        uint8_t *payload;
        size_t length;
        switch (wire_receive(&payload, &length)) {
        case FRAME_PREPARE:
            prepare(length > 0 && payload[0]);
            break;
        case FRAME_RUN:
            serve_run(payload, length);
            break;
        case FRAME_KILL: /* the run has ended meanwhile */
            break;
        default:
            errno = 0;
            die("unknown frame");
        }
        free(payload);
    }
}
