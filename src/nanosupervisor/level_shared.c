/* The shared level (level.h): the program runs in the container itself, as a child of the supervisor. */
#define _GNU_SOURCE
#include "level.h"
#include "listening.h"
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static int child_ended = -1; /* signalfd: SIGCHLD, which the supervisor blocks */
static pid_t program;        /* 0: not started, or already reaped (then another process may get its number) */

static void set_up(const struct settings *settings)
{
    struct listening_sockets sockets;
    sigset_t child;
    (void)settings;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    child_ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (child_ended < 0)
        die("signalfd");
    listening_open(&sockets); /* one set, for all runs of the container */
    listening_hand_over(&sockets);
}

/* Nothing to do: between runs no process but the supervisor exists. */
static void drop_code(void)
{
}

/* Nothing to do: the program starts in /work, and the code is already there. */
static enum imports_state take_code(const struct new_code *code)
{
    return code->reuses_imports ? IMPORTS_UNAVAILABLE : IMPORTS_OFF;
}

/* ---- starting the program ----------------------------------------------------------------------------- */

/* In the child: become the program. If that fails, send the errno through the status pipe. */
__attribute__((noreturn)) static void become_program(const struct run *run, int in, int out, int err, int status)
{
    const struct confinement confinement = {run->request.file_size_bytes, run->request.open_files, .shared = 1};
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* INT_MAX, because older releases of gVisor take ~0u for -1. */
    if (dup2(in, 0) >= 0 && dup2(out, 1) >= 0 && dup2(err, 2) >= 0 && dup3(status, 3, O_CLOEXEC) >= 0 &&
        !close_range(4, INT_MAX, 0) && !chdir(WORK_DIR) && !confine(&confinement, -1))
        execve(run->arguments[0], run->arguments, run->environment);
    uint32_t error = (uint32_t)errno;
    if (write(3, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}

static uint32_t start(struct run *run)
{
    int in[2], out[2], err[2], status[2];
    uint32_t error = run_write_payload(run, &container_dirs);
    if (pipe2(in, O_CLOEXEC) || capture_pipe(out) || capture_pipe(err) || pipe2(status, O_CLOEXEC))
        die("no pipes");
    run_note_start(run);
    pid_t child = error ? -1 : fork();
    if (child == 0)
        become_program(run, in[0], out[1], err[1], status[1]);
    if (child < 0 && !error)
        error = (uint32_t)errno;
    program = child > 0 ? child : 0;
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(status[1]);
    run_open_streams(run, in[1], out[0], err[0]);
    /* When the program is executed, the status pipe closes without an errno. */
    if (!error && read(status[0], &error, sizeof error) < 0)
        error = (uint32_t)errno;
    close(status[0]);
    return error;
}

/* ---- watching and ending it --------------------------------------------------------------------------- */

static size_t watch(struct pollfd events[LEVEL_EVENTS])
{
    events[0] = (struct pollfd){child_ended, POLLIN, 0};
    return 1;
}

static void note_reaped(struct run *run, pid_t pid, int status)
{
    if (pid == program) {
        program = 0;
        run_note_end(run, status);
    }
}

/* Reap all children that have ended. Orphans of the run are also children of the supervisor. Between runs there are
 * no children, but the signal of the last one that was killed may still be pending. */
static void serve(struct run *run)
{
    struct signalfd_siginfo ignored;
    int status;
    pid_t pid;
    if (read(child_ended, &ignored, sizeof ignored) < 0 && errno != EAGAIN)
        die("signalfd");
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (run)
            note_reaped(run, pid, status);
}

static pid_t network_process(void)
{
    return getpid();
}

static void terminate(void)
{
    kill(-1, SIGTERM);
}

/* Kill and reap every process but the supervisor. */
static void kill_run(struct run *run)
{
    int status;
    pid_t pid;
    kill(-1, SIGKILL);
    while ((pid = waitpid(-1, &status, 0)) > 0 || errno == EINTR) {
        if (pid > 0 && pid != program)
            run->report.left_over++;
        if (pid > 0)
            note_reaped(run, pid, status);
    }
}

static void finish(const struct run *run)
{
    wire_send_done(writable_wipe() && writable_is_empty_again());
    wire_flush();
    if (run->request.prepare_next) {
        /* The wipe has also removed the code from /work. Make it again from the work directory, which is mounted
         * at /slot. */
        struct ready_report report = unpack_slot_code(container_dirs.directory[WRITABLE_WORK]);
        wire_send_ready(&report);
    }
}

const struct level shared_level = {
    .number = LEVEL_SHARED,
    .has_netlink = 0,
    .set_up = set_up,
    .drop_code = drop_code,
    .take_code = take_code,
    .start = start,
    .watch = watch,
    .serve = serve,
    .network_process = network_process,
    .terminate = terminate,
    .kill_run = kill_run,
    .finish = finish,
};
