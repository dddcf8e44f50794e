/* nanosupervisor: process 1 of every container. It runs one program at a time and leaves nothing of it.
 *
 * Theory of operation
 * -------------------
 * The container has a read-only root, no network, no capability, an ordinary user id of its own, and small
 * tmpfs mounts that it may write to. The agent binds one folder into it, read-only: /slot, with a socket and,
 * once the container belongs to a function, its code (/slot/code) or built program (/slot/program).
 *
 *   start      connect to /slot/agent.sock and /slot/listening.sock (the agent takes one connection at each and removes
 *              the sockets), HELLO
 *   CONFIGURE  find out what the host allows -> LEVEL; start the interpreter that waits; park a sandbox -> READY
 *   PREPARE    copy the code to /work, show it to the parked sandbox -> READY
 *   RUN        write the payload, start the program, watch it to its end -> EXIT, STDOUT, STDERR; send what it
 *              left in /output -> FILE, DATA, REFUSED; let go of everything -> DONE; park the next -> READY
 *   KILL       during a run: end it now
 *
 * A run has ended when its first process has. Everything else is then killed. There are two levels:
 *
 *   sandbox  The run has namespaces and mounts of its own, made ahead of it (sandbox.c). Killing its process 1
 *            kills all of it, and its folders are gone when we close them.
 *   shared   Where the host forbids that, the program runs in the container itself: as process 1 of the
 *            container we kill(-1), wipe every folder, and look whether they are as empty as at the start.
 *
 * The agent closing the connection, for whatever reason, ends the supervisor and with it the whole container.
 *
 * At both levels the program runs under the supervisor's own user id (docs/adr/0003): the container holds no
 * capability with which there could be another. What keeps it from harming us is said in filter.c.
 *
 * Read in this order: wire.h, here from main() upward, sandbox.c, listening.h, zygote.c, input.h, tree.c, confine.c, filter.c. */
#define _GNU_SOURCE
#include "capture.h"
#include "confine.h"
#include "listening.h"
#include "input.h"
#include "interpreter.h"
#include "sandbox.h"
#include "tree.h"
#include "wire.h"
#include "zygote.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CAPTURE (16u << 20)
#define MAX_STRINGS 65536u
#define LITTLE_BYTES (1u << 20)
/* What connections take that nobody accepts is charged to no control group: 2.6 KB each, of which a run makes 28,000
 * in a second. So many sockets at once, these included, are no program's that means well. */
#define MOST_SOCKETS 16384u
#define MOST_NETLINK_BYTES (4u << 20)
#define LOOK_US 100000u

static int children = -1; /* signalfd: SIGCHLD */

/* What the agent has configured, and what was found out. */
static struct {
    uint8_t level;
    struct confinement confinement;
    struct interpreter interpreter;
    char *modules; /* for every zygote of this container */
    size_t modules_length;
    int has_code; /* in the container's work folder */
    int more_modules; /* the zygote has modules that this code imports */
} state;

/* The sandbox that waits for the next run, or is in one. */
static struct {
    struct sandbox sandbox;
    struct confinement confinement;
    enum kind wanted; /* the kind of the parked process, or the kind that did not come up */
    int attached;
} parked;

static uint64_t now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_nsec / 1000u;
}

struct run {
    struct run_request request;
    char **arguments, **environment;
    struct job job;      /* the same strings, as a parked process takes them */
    const char *strings;
    pid_t program;       /* at the shared level, and a zygote's */
    const struct tree *tree;
    struct input in;
    struct capture out, err;
    uint64_t started_us;
    struct timespec started_at; /* on the clock of file times */
    int kill_requested;
    int ended;
    struct exit_report report;
};

static void note_start(struct run *run)
{
    run->started_us = now_us();
    /* The clock of file times, which goes by ticks of up to 10 ms: a precise start could be later than a file. */
    clock_gettime(CLOCK_REALTIME_COARSE, &run->started_at);
}

/* ---- sandboxes ---------------------------------------------------------------------------------------- */

static void discard_sandbox(void)
{
    struct zygote_exit ignored;
    if (!parked.sandbox.init)
        return;
    sandbox_kill(&parked.sandbox);
    if (parked.sandbox.program)
        zygote_await_exit(parked.sandbox.program, &ignored);
    close(parked.sandbox.in);
    close(parked.sandbox.out);
    close(parked.sandbox.err);
    sandbox_close(&parked.sandbox);
}

/* The zygote reaps what it forked: its sandbox goes before it does. */
static void start_zygote(void)
{
    discard_sandbox();
    if (state.interpreter.kind == KIND_ZYGOTE)
        zygote_start(&state.interpreter, state.modules, state.modules_length);
    state.more_modules = 0;
}

static void park_with(const struct interpreter *interpreter, const struct confinement *confinement)
{
    discard_sandbox();
    parked.confinement = *confinement;
    parked.attached = 0;
    sandbox_open(&parked.sandbox, confinement, interpreter);
    listening_hand_over(&parked.sandbox.listening);
}

/* Park a sandbox for a program of that kind. An interpreter that does not come up is done without: programs
 * are then started plainly, which is slower and otherwise the same. */
static void park(enum kind kind, const struct confinement *confinement)
{
    parked.wanted = kind;
    if (kind == KIND_ZYGOTE && !zygote_runs())
        start_zygote();
    if (kind == KIND_ZYGOTE && !zygote_runs())
        kind = KIND_EXEC;
    park_with(kind == KIND_EXEC ? &no_interpreter : &state.interpreter, confinement);
    if ((kind == KIND_ZYGOTE && !parked.sandbox.program) || !sandbox_is_ready(&parked.sandbox)) {
        if (kind == KIND_EXEC)
            die("a parked process ended");
        park_with(&no_interpreter, confinement);
        if (!sandbox_is_ready(&parked.sandbox))
            die("a parked process ended");
    }
    if (state.has_code) {
        sandbox_attach_code(&parked.sandbox);
        parked.attached = 1;
    }
}

/* Which kind of process can run this: an interpreter that waits takes nothing but a script. */
static enum kind kind_for(const struct run *run)
{
    const struct interpreter *interpreter = &state.interpreter;
    int fits = interpreter->kind != KIND_EXEC && run->request.argument_count >= 2 &&
               !strcmp(run->arguments[0], interpreter->words[0]) && run->arguments[1][0] != '-';
    return fits ? interpreter->kind : KIND_EXEC;
}

/* Have a parked sandbox that suits the run; most often it is there. The listening sockets of one that is parked only now come
 * too late for the agent: it happens to builds alone, which go nowhere. */
static void have_sandbox(const struct run *run)
{
    struct confinement wanted = {run->request.file_size_bytes, run->request.open_files, 0};
    if (!parked.sandbox.init || parked.wanted != kind_for(run) ||
        memcmp(&wanted, &parked.confinement, sizeof wanted) != 0)
        park(kind_for(run), &wanted);
    if (!parked.attached)
        sandbox_attach_code(&parked.sandbox);
    parked.attached = 1;
}

static uint32_t start_in_sandbox(struct run *run, const void *payload)
{
    have_sandbox(run);
    run->tree = &parked.sandbox.tree;
    run->program = parked.sandbox.program;
    uint32_t error = (uint32_t)tree_write_payload(run->tree, payload, run->request.payload_bytes);
    note_start(run);
    input_open(&run->in, parked.sandbox.in, payload, run->request.payload_bytes);
    capture_open(&run->out, FRAME_STDOUT, parked.sandbox.out, run->request.capture_bytes);
    capture_open(&run->err, FRAME_STDERR, parked.sandbox.err, run->request.capture_bytes);
    if (!error && !sandbox_start(&parked.sandbox, &run->job, run->strings))
        error = EPIPE;
    return error;
}

static void note_end(struct run *run, int status)
{
    run->report.wait_status = (uint32_t)status;
    run->ended = 1;
}

static void note_exit(struct run *run, const struct zygote_exit *end)
{
    if (end->pid != run->program)
        return;
    run->report.user_us += end->user_us;
    run->report.system_us += end->system_us;
    note_end(run, end->status);
}

/* See that no process of the run is left. Init stays, if it can: it is killed when the run has been reported. */
static void end_sandbox(struct run *run)
{
    int status;
    struct zygote_exit end;
    if (run->ended && (!run->program || (zygote_runs() && sandbox_end_everyone(&parked.sandbox))))
        return;
    sandbox_kill(&parked.sandbox);
    if (run->ended)
        return;
    if (run->program) {
        zygote_await_exit(run->program, &end);
        note_exit(run, &end);
    } else {
        note_end(run, sandbox_has_ended(&parked.sandbox, &status) ? status : SIGKILL);
    }
}

/* The errno with which the program could not be executed, which its parked process told in its last breath. */
static uint32_t exec_error(void)
{
    uint32_t error = 0;
    return recv(parked.sandbox.job, &error, sizeof error, MSG_DONTWAIT) == sizeof error ? error : 0;
}

/* ---- the shared level --------------------------------------------------------------------------------- */

/* In the child: become the program. Only returns by way of the status pipe. */
__attribute__((noreturn)) static void become_program(const struct run *run, int in, int out, int err, int status)
{
    const struct confinement confinement = {run->request.file_size_bytes, run->request.open_files, 1};
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* INT_MAX, not ~0u: older releases of gVisor take that for -1. */
    if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(err, 2) >= 0 && dup3(status, 3, O_CLOEXEC) >= 0 &&
        !close_range(4, INT_MAX, 0) && !chdir(WORK_DIR) && !confine(&confinement, -1))
        execve(run->arguments[0], run->arguments, run->environment);
    uint32_t error = (uint32_t)errno;
    if (write(3, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}

/* Start the program; an errno when it could not be. */
static uint32_t start_shared(struct run *run, const void *payload)
{
    int in[2], out[2], err[2], status[2];
    run->tree = &container_tree;
    uint32_t error = (uint32_t)tree_write_payload(run->tree, payload, run->request.payload_bytes);
    if (pipe2(in, O_CLOEXEC) || capture_pipe(out) || capture_pipe(err) || pipe2(status, O_CLOEXEC))
        die("no pipes");
    note_start(run);
    if (!error && (run->program = fork()) == 0)
        become_program(run, in[0], out[1], err[1], status[1]);
    if (run->program < 0)
        error = (uint32_t)errno;
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(status[1]);
    input_open(&run->in, in[1], payload, run->request.payload_bytes);
    if (!error && read(status[0], &error, sizeof error) < 0)
        error = (uint32_t)errno;
    close(status[0]);
    capture_open(&run->out, FRAME_STDOUT, out[0], run->request.capture_bytes);
    capture_open(&run->err, FRAME_STDERR, err[0], run->request.capture_bytes);
    return error;
}

/* Reap whatever has ended. */
static void reap(struct run *run)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == run->program) {
            run->program = -1; /* its number may be another's from now on */
            note_end(run, status);
        }
}

/* Kill and reap every process but ourselves. */
static void end_everything(struct run *run)
{
    int status;
    pid_t pid;
    kill(-1, SIGKILL);
    while ((pid = waitpid(-1, &status, 0)) > 0 || errno == EINTR) {
        if (pid == run->program)
            note_end(run, status);
        else if (pid > 0)
            run->report.left_over++;
    }
}

/* ---- the program's time -------------------------------------------------------------------------------- */

static int is_sandboxed(void)
{
    return state.level == LEVEL_SANDBOX;
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

/* Look whether the program has ended. */
static void look_for_end(struct run *run)
{
    struct signalfd_siginfo ignored;
    struct zygote_exit end;
    int status;
    if (!is_sandboxed()) {
        if (read(children, &ignored, sizeof ignored) < 0 && errno != EAGAIN)
            die("signalfd");
        reap(run);
    } else if (run->program) {
        if (zygote_has_reported(&end))
            note_exit(run, &end);
        else if (!zygote_runs()) {
            run->report.flags |= EXIT_ORPHANED; /* whose fault that is, the kernel's counters tell the agent */
            note_end(run, SIGKILL);
        }
    } else if (sandbox_has_ended(&parked.sandbox, &status)) {
        note_end(run, status);
    }
}

/* The beginning of a file of /proc/net, as the run's network has it; empty where it cannot be read. */
static void read_of_network(const char *name, char *text, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/net/%s", is_sandboxed() ? parked.sandbox.init : getpid(), name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file >= 0 ? read(file, text, room - 1) : 0;
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
}

/* How many sockets there are in the run's network, those included that wait to be accepted. */
static unsigned long sockets_of_run(void)
{
    char text[64];
    unsigned long used = 0;
    read_of_network("sockstat", text, sizeof text);
    return sscanf(text, "sockets: used %lu", &used) == 1 ? used : 0;
}

/* Bytes of unread answers in the run's netlink sockets. A run outside a sandbox has none. */
static unsigned long netlink_bytes_of_run(void)
{
    char text[8192];
    unsigned long total = 0, bytes;
    if (!is_sandboxed())
        return 0;
    read_of_network("netlink", text, sizeof text);
    for (const char *line = strchr(text, '\n'); line; line = strchr(line + 1, '\n'))
        if (sscanf(line, " %*s %*s %*s %*s %lu", &bytes) == 1)
            total += bytes;
    return total;
}

static int holds_too_much_of_the_kernel(void)
{
    return sockets_of_run() > MOST_SOCKETS || netlink_bytes_of_run() > MOST_NETLINK_BYTES;
}

static void terminate(void)
{
    if (is_sandboxed())
        sandbox_terminate(&parked.sandbox);
    else
        kill(-1, SIGTERM);
}

/* When the supervisor has to look at a run again, in microseconds of now_us(). */
struct schedule {
    uint64_t deadline;
    uint64_t kill_at; /* UINT64_MAX: SIGTERM has not been sent */
    uint64_t look_at; /* for sockets */
};

static uint64_t next_of(const struct schedule *schedule)
{
    uint64_t next = schedule->kill_at != UINT64_MAX ? schedule->kill_at : schedule->deadline;
    return next < schedule->look_at ? next : schedule->look_at;
}

/* Serve the run's descriptors once, or wait until that time. */
static void serve_descriptors(struct run *run, int end_fd, uint64_t until)
{
    enum { OUT, ERR, END, AGENT, IN, EVENTS };
    uint64_t now = now_us(), wait_us = until > now ? until - now : 0;
    struct timespec wait = {(time_t)(wait_us / 1000000u), (long)(wait_us % 1000000u) * 1000};
    struct pollfd events[EVENTS] = {
        [OUT] = {run->out.from, POLLIN, 0}, [ERR] = {run->err.from, POLLIN, 0}, [END] = {end_fd, POLLIN, 0},
        [AGENT] = {wire_fd(), POLLIN, 0},   [IN] = {run->in.to, POLLOUT, 0},
    };
    if (ppoll(events, EVENTS, &wait, NULL) < 0 && errno != EINTR)
        die("poll");
    if (events[OUT].revents)
        capture_read(&run->out);
    if (events[ERR].revents)
        capture_read(&run->err);
    if (events[IN].revents)
        input_feed(&run->in);
    if (events[AGENT].revents)
        read_request(run);
    if (events[END].revents)
        look_for_end(run);
}

/* Whether the run has to be killed now. Sends SIGTERM when its time is up. */
static int has_to_end(struct run *run, struct schedule *schedule)
{
    uint64_t now = now_us();
    if (run->kill_requested) {
        run->report.flags |= EXIT_KILLED;
        return 1;
    }
    if (now >= schedule->kill_at)
        return 1;
    if (now >= schedule->look_at && holds_too_much_of_the_kernel()) {
        run->report.flags |= EXIT_SOCKETS;
        return 1;
    }
    if (now >= schedule->look_at)
        schedule->look_at = now + LOOK_US;
    if (now >= schedule->deadline && schedule->kill_at == UINT64_MAX) {
        run->report.flags |= EXIT_TIMED_OUT;
        terminate();
        schedule->kill_at = now + (uint64_t)run->request.grace_ms * 1000u;
    }
    return 0;
}

/* Wait until the program has ended, by itself or by our hand. */
static void watch_program(struct run *run)
{
    struct schedule schedule = {
        .deadline = run->started_us + (uint64_t)run->request.timeout_ms * 1000u,
        .kill_at = UINT64_MAX,
        .look_at = run->started_us + LOOK_US,
    };
    int end_fd = !is_sandboxed() ? children : run->program ? zygote_fd() : parked.sandbox.control;
    while (!run->ended) {
        serve_descriptors(run, end_fd, next_of(&schedule));
        if (!run->ended && has_to_end(run, &schedule))
            return;
    }
}

static void end_processes(struct run *run)
{
    if (is_sandboxed())
        end_sandbox(run);
    else
        end_everything(run);
    input_close(&run->in);
    while (capture_read(&run->out))
        ;
    while (capture_read(&run->err))
        ;
}

/* ---- a run from request to nothing left ---------------------------------------------------------------- */

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
    run->strings = (char *)frame + sizeof run->request;
    run->environment = run->arguments ? strings_of(&at, end, run->request.environment_count) : NULL;
    run->job = (struct job){(uint32_t)(at - run->strings), run->request.argument_count, run->request.environment_count};
    if (!run->environment || !run->request.argument_count || run->request.payload_bytes != (size_t)(end - at) ||
        run->request.capture_bytes < 2 || run->request.capture_bytes > MAX_CAPTURE)
        die("malformed run request");
    *payload = at;
}

static void usage_between(const struct rusage *before, struct exit_report *report)
{
    struct rusage after;
    getrusage(RUSAGE_CHILDREN, &after);
    report->user_us += (uint64_t)((after.ru_utime.tv_sec - before->ru_utime.tv_sec) * 1000000 +
                                 (after.ru_utime.tv_usec - before->ru_utime.tv_usec));
    report->system_us += (uint64_t)((after.ru_stime.tv_sec - before->ru_stime.tv_sec) * 1000000 +
                                   (after.ru_stime.tv_usec - before->ru_stime.tv_usec));
}

static void judge_disk(struct run *run)
{
    struct exit_report *report = &run->report;
    const struct run_request *request = &run->request;
    int status = (int)report->wait_status;
    if (tree_is_full(run->tree))
        report->flags |= EXIT_DISK_FULL;
    if ((WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ) ||
        (status != 0 &&
         tree_has_file_of(run->tree, request->file_size_bytes, request->payload_bytes, &run->started_at)))
        report->flags |= EXIT_FILE_LIMIT;
}

static void send_ready(const struct ready_report *report)
{
    wire_send(FRAME_READY, report, sizeof *report);
    wire_flush();
}

/* Get ready for another run of the same code. */
static void prepare_again(void)
{
    struct ready_report report = {0};
    if (is_sandboxed())
        park(state.interpreter.kind, &parked.confinement);
    else
        report = tree_copy_code(container_tree.place[PLACE_WORK]);
    send_ready(&report);
}

/* Let go of a run's sandbox, with all its files. */
static void leave(struct sandbox *sandbox)
{
    if (sandbox->init)
        sandbox_kill(sandbox);
    sandbox_close(sandbox);
    tree_collect_sockets(); /* none of it could be reached again; its memory is wanted back */
}

static void send_done(int clean)
{
    uint8_t byte = (uint8_t)clean;
    wire_send(FRAME_DONE, &byte, 1);
    wire_flush();
}

/* Report that nothing of the run is left for another, and get ready for that one. The sandbox of a run that has
 * left much is let go first, so that the agent does not find its memory still in use; any other is taken apart
 * by the kernel meanwhile. */
static void finish_in_sandbox(const struct run *run)
{
    struct sandbox spent = parked.sandbox;
    int at_once = tree_used_bytes(run->tree) > LITTLE_BYTES;
    parked.sandbox.init = 0;
    if (at_once)
        leave(&spent);
    send_done(1);
    if (spent.init)
        kill(spent.init, SIGKILL);
    if (run->request.prepare_next)
        prepare_again();
    if (!at_once)
        leave(&spent);
}

static void finish_shared(const struct run *run)
{
    send_done(tree_wipe() && tree_is_empty_again());
    if (run->request.prepare_next)
        prepare_again();
}

/* Take over what the slot folder has now. */
static void prepare(const uint8_t *frame, size_t frame_length)
{
    if (!frame_length)
        die("short preparation");
    const char *modules = (const char *)frame + 1;
    size_t length = frame_length - 1;
    struct ready_report report = {0};
    int work = container_tree.place[PLACE_WORK];
    if (state.has_code && !tree_wipe_place(PLACE_WORK)) {
        errno = 0;
        die("the code of before cannot be removed");
    }
    report = tree_copy_code(work);
    state.has_code = 1;
    if (is_sandboxed() && !report.error) {
        int again = parked.attached || (frame[0] && state.interpreter.kind == KIND_SPARE);
        if (state.more_modules)
            start_zygote();
        if (length && zygote_runs()) {
            if (zygote_preload(modules, length, work))
                state.more_modules = 1;
            else
                start_zygote();
            again = 1;
        }
        if (again || !parked.sandbox.init)
            park(state.interpreter.kind, &state.confinement);
        else
            sandbox_attach_code(&parked.sandbox);
        parked.attached = 1;
    }
    send_ready(&report);
}

static void configure(const uint8_t *frame, size_t length)
{
    struct configuration configuration;
    struct ready_report ready = {0};
    char why[128] = "";
    if (length < sizeof configuration)
        die("short configuration");
    memcpy(&configuration, frame, sizeof configuration);
    const uint8_t *addresses = frame + sizeof configuration;
    const uint8_t *modules = addresses + configuration.listening_count * sizeof(struct listening_address);
    if (modules > frame + length)
        die("short configuration");
    state.confinement = (struct confinement){configuration.file_size_bytes, configuration.open_files, 0};
    sandbox_work_bytes = configuration.work_bytes;
    sandbox_work_files = configuration.work_files;
    state.level = LEVEL_SHARED;
    if (configuration.highest_level >= LEVEL_SANDBOX && sandbox_is_possible(why, sizeof why))
        state.level = LEVEL_SANDBOX;
    wire_send2(FRAME_LEVEL, &state.level, 1, why, is_sandboxed() ? 0 : strlen(why));
    wire_flush();
    listening_configure((const struct listening_address *)addresses, configuration.listening_count);
    if (!is_sandboxed()) {
        struct listening_sockets here;
        listening_open(&here);
        listening_hand_over(&here);
    }
    if (is_sandboxed()) {
        state.modules_length = (size_t)(frame + length - modules);
        state.modules = malloc(state.modules_length + 1);
        if (!state.modules)
            die("no memory");
        memcpy(state.modules, modules, state.modules_length);
        interpreter_read(&state.interpreter);
        sandbox_enter();
        start_zygote();
        park(state.interpreter.kind, &state.confinement);
    }
    send_ready(&ready);
}

static void serve_run(uint8_t *frame, size_t length)
{
    struct run run = {0};
    struct rusage before;
    const char *payload;
    parse_request(&run, frame, length, &payload);
    getrusage(RUSAGE_CHILDREN, &before);

    run.report.exec_error = is_sandboxed() ? start_in_sandbox(&run, payload) : start_shared(&run, payload);
    if (!run.report.exec_error)
        watch_program(&run);
    run.report.wall_us = now_us() - run.started_us;
    end_processes(&run);
    if (!run.report.exec_error && is_sandboxed())
        run.report.exec_error = exec_error();
    if (run.report.exec_error)
        run.report.flags |= EXIT_NOT_STARTED;
    usage_between(&before, &run.report);
    judge_disk(&run);
    run.report.stdout_total = run.out.total;
    run.report.stderr_total = run.err.total;
    run.report.stdout_kept = capture_kept(&run.out);
    run.report.stderr_kept = capture_kept(&run.err);
    wire_send(FRAME_EXIT, &run.report, sizeof run.report);
    capture_send_and_free(&run.out);
    capture_send_and_free(&run.err);
    tree_send_outputs(run.tree, &run.request);

    if (is_sandboxed())
        finish_in_sandbox(&run);
    else
        finish_shared(&run);
    free(run.arguments);
    free(run.environment);
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
    tree_open_container();
    wire_connect("/slot/agent.sock");
    listening_connect("/slot/listening.sock");
    uint32_t version = PROTOCOL_VERSION;
    wire_send(FRAME_HELLO, &version, sizeof version);
    wire_flush();
    for (;;) {
        uint8_t *payload;
        size_t length;
        switch (wire_receive(&payload, &length)) {
        case FRAME_CONFIGURE:
            configure(payload, length);
            break;
        case FRAME_PREPARE:
            prepare(payload, length);
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
