/* See sandbox.h. The order of steps, for one sandbox:
 *
 *   supervisor  clones init with all namespaces at once
 *   init        makes the sandbox from inside (init_main), forks the pre-created process unless the zygote does, and
 *               sends the writable directories and listening sockets
 *   supervisor  passes the listener of the process's filter to init, and waits until the process is ready; when code
 *               arrives, tells init to mount it
 *   init        mounts the code, gives up its capabilities, stops being dumpable
 *   supervisor  writes the payload and sends the job to the process, which becomes the program
 *   init        serves netlink calls; if it forked the program: waits for the program's end, kills the other processes,
 *               and reports the end
 *   supervisor  reports the run, and then kills init; not earlier, because the kernel needs as long to remove the
 *               namespaces as a short run takes
 *
 * user_namespaces(7), pid_namespaces(7) */
#define _GNU_SOURCE
#include "sandbox.h"
#include "capture.h"
#include "control.h"
#include "descriptors.h"
#include "namespaces.h"
#include "sandbox_init.h"
#include "zygote.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- messages ----------------------------------------------------------------------------------------- */

static void send_command(const struct sandbox *sandbox, enum command command)
{
    const char byte = (char)command;
    send(sandbox->control, &byte, 1, MSG_NOSIGNAL);
}

/* Take the descriptors that came with REPORT_MADE. `bound` is the value of the report. */
static void take_descriptors(struct sandbox *sandbox, unsigned bound, const int *handed, size_t count)
{
    if (count != WRITABLE_COUNT + (size_t)__builtin_popcount(bound))
        return;
    memcpy(sandbox->dirs.directory, handed, sizeof sandbox->dirs.directory);
    const int *next = handed + WRITABLE_COUNT;
    for (unsigned i = 0; i < MAX_LISTENING_SOCKETS; i++)
        sandbox->listening.socket[i] = bound & 1u << i ? *next++ : -1;
}

/* Receive one report. If init has ended, `report` gets the type REPORT_ERROR. */
static void receive_report(struct sandbox *sandbox, struct report *report)
{
    int handed[MAX_DESCRIPTORS];
    size_t count;
    ssize_t got = descriptors_receive(sandbox->control, report, sizeof *report, handed, MAX_DESCRIPTORS, &count);
    if (got != sizeof *report)
        *report = (struct report){.type = REPORT_ERROR, .value = got < 0 ? errno : ECHILD, .step = "a sandbox ended"};
    else if (report->type == REPORT_MADE)
        take_descriptors(sandbox, (unsigned)report->value, handed, count);
}

/* Wait for one type of report and ignore others. Return 0 if an error is reported instead, with the error
 * in `report`. */
static int await_report(struct sandbox *sandbox, enum report_type type, struct report *report)
{
    do
        receive_report(sandbox, report);
    while (report->type != REPORT_ERROR && report->type != (char)type);
    return report->type == (char)type;
}

__attribute__((noreturn)) static void die_with(const struct report *report)
{
    errno = report->value;
    die("a sandbox cannot be created: %s", report->step);
}

/* ---- from creation to the program's end --------------------------------------------------------------- */

/* Create the pipes and sockets between the supervisor and the sandbox. The sandbox's ends go to `process`
 * and `control`. */
static void open_channels(struct sandbox *sandbox, int process[PROCESS_DESCRIPTORS], int *control)
{
    int to_init[2], job[2], in[2], out[2], err[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, to_init) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, job) || pipe2(in, O_CLOEXEC) || capture_pipe(out) ||
        capture_pipe(err))
        die("no pipes");
    *sandbox = (struct sandbox){.control = to_init[0], .job = job[0], .in = in[1], .out = out[0], .err = err[0]};
    memset(&sandbox->listening, -1, sizeof sandbox->listening);
    const int ends[PROCESS_DESCRIPTORS] = {
        [PROCESS_JOB] = job[1], [PROCESS_IN] = in[0], [PROCESS_OUT] = out[1], [PROCESS_ERR] = err[1]};
    memcpy(process, ends, sizeof ends);
    *control = to_init[1];
}

/* Create init and wait until the sandbox is made. Return 0 if a step failed, with its report in `failure`. */
static int create(struct sandbox *sandbox, const struct work_limits *work, const struct confinement *confinement,
                  const struct interpreter *interpreter, struct report *failure)
{
    int process[PROCESS_DESCRIPTORS];
    struct sandbox_plan plan = {.confinement = *confinement, .interpreter = interpreter, .work = *work};
    open_channels(sandbox, process, &plan.control);
    sandbox->parent = interpreter->kind == KIND_ZYGOTE ? PARENT_ZYGOTE : PARENT_INIT;
    if (sandbox->parent == PARENT_INIT)
        memcpy(plan.process, process, sizeof process);
    else
        memset(plan.process, -1, sizeof plan.process);
    sandbox->init = (pid_t)syscall(SYS_clone, (unsigned long)(SANDBOX_NAMESPACES | CLONE_PIDFD | SIGCHLD), NULL,
                                   &sandbox->init_pidfd, NULL, 0);
    if (sandbox->init == 0)
        init_main(plan);
    if (sandbox->init < 0) {
        *failure = (struct report){.type = REPORT_ERROR, .value = errno, .step = "clone with new namespaces"};
        return 0;
    }
    close(plan.control);
    int made = await_report(sandbox, REPORT_MADE, failure);
    if (made && sandbox->parent == PARENT_ZYGOTE)
        sandbox->zygote_child = zygote_fork(sandbox->init_pidfd, process, confinement);
    for (int i = 0; i < PROCESS_DESCRIPTORS; i++)
        close(process[i]);
    return made;
}

int sandbox_open(struct sandbox *sandbox, const struct work_limits *work, const struct confinement *confinement,
                 const struct interpreter *interpreter)
{
    struct report failure;
    if (!create(sandbox, work, confinement, interpreter, &failure))
        die_with(&failure);
    return sandbox->parent == PARENT_INIT || sandbox->zygote_child;
}

/* Pass the listener of a process's filter on to init, which is in the same network. */
static void pass_listener_on(const struct sandbox *sandbox, int listener)
{
    const char byte = COMMAND_SERVE_NETLINK;
    descriptors_send(sandbox->control, &byte, 1, &listener, 1, 0);
    close(listener);
}

int sandbox_wait_ready(struct sandbox *sandbox)
{
    for (;;) {
        char byte;
        int listener = -1;
        size_t count;
        ssize_t got = descriptors_receive(sandbox->job, &byte, 1, &listener, 1, &count);
        if (got != 1 || byte != JOB_CONFINED)
            return got == 1 && byte == JOB_READY;
        if (count)
            pass_listener_on(sandbox, listener);
    }
}

void sandbox_attach_code(struct sandbox *sandbox)
{
    struct report report;
    send_command(sandbox, COMMAND_ATTACH_CODE);
    if (!await_report(sandbox, REPORT_ATTACHED, &report))
        die_with(&report);
}

int sandbox_start(struct sandbox *sandbox, const struct job *job, const char *strings)
{
    struct iovec parts[2] = {{(void *)job, sizeof *job}, {(void *)strings, job->length}};
    return wire_send_parts(sandbox->job, parts, 2);
}

uint32_t sandbox_exec_error(const struct sandbox *sandbox)
{
    uint32_t error = 0;
    return recv(sandbox->job, &error, sizeof error, MSG_DONTWAIT) == sizeof error ? error : 0;
}

void sandbox_terminate(struct sandbox *sandbox)
{
    send_command(sandbox, COMMAND_TERMINATE);
}

int sandbox_kill_run(struct sandbox *sandbox)
{
    struct report report;
    send_command(sandbox, COMMAND_KILL_RUN); /* if init has ended, the next call returns an error */
    return await_report(sandbox, REPORT_RUN_KILLED, &report);
}

int sandbox_program_has_ended(struct sandbox *sandbox, int *status)
{
    struct report report;
    ssize_t got = recv(sandbox->control, &report, sizeof report, MSG_DONTWAIT);
    if (got == sizeof report && report.type == REPORT_PROGRAM_ENDED)
        *status = report.value;
    else if (got == 0 || (got < 0 && errno == ECONNRESET))
        *status = SIGKILL; /* init has ended, and the program with it */
    else
        return 0;
    return 1;
}

void sandbox_kill(struct sandbox *sandbox)
{
    pid_t pid;
    kill(sandbox->init, SIGKILL);
    /* Init ends only when every process in its namespace has been reaped. The zygote reaps its own
     * children. If the zygote has ended, they are children of the supervisor. */
    while ((pid = waitpid(-1, NULL, 0)) != sandbox->init && (pid > 0 || errno == EINTR))
        zygote_note_reaped(pid);
    sandbox->init = 0;
}

void sandbox_close(struct sandbox *sandbox)
{
    for (int i = 0; i < WRITABLE_COUNT; i++)
        close(sandbox->dirs.directory[i]);
    listening_close(&sandbox->listening);
    close(sandbox->control);
    close(sandbox->job);
    close(sandbox->init_pidfd);
}

/* ---- before the first sandbox ------------------------------------------------------------------------- */

void sandbox_prepare_supervisor(void)
{
    const char *failed = namespaces_enter_own();
    if (failed)
        die("cannot enter a user namespace: %s", failed);
    if ((failed = hide_sys()))
        die("cannot hide %s", failed);
    prctl(PR_SET_DUMPABLE, 0);
}

/* Create a sandbox and mount code into it. Return the report of the step that failed; on success its text
 * is empty. */
static struct report try_once(const struct work_limits *work)
{
    static const struct confinement confinement = {.file_size_bytes = 1, .open_files = 16};
    struct report failure = {0};
    struct sandbox sandbox;
    const char *failed = namespaces_enter_own();
    if (failed) {
        failure.value = errno;
        snprintf(failure.step, sizeof failure.step, "%s", failed);
        return failure;
    }
    if (!create(&sandbox, work, &confinement, &no_interpreter, &failure))
        return failure;
    if (!sandbox_wait_ready(&sandbox)) {
        failure = (struct report){.value = EPERM, .step = "confine"};
    } else {
        send_command(&sandbox, COMMAND_ATTACH_CODE);
        await_report(&sandbox, REPORT_ATTACHED, &failure); /* a report of success has an empty text */
    }
    sandbox_kill(&sandbox); /* otherwise init would become a zombie child of process 1 */
    return failure;
}

int sandbox_is_possible(const struct work_limits *work, char *reason, size_t room)
{
    struct report failure = {.step = "the attempt gave no answer"};
    int answer[2];
    if (pipe2(answer, O_CLOEXEC))
        die("no pipes");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0) {
        failure = try_once(work);
        _exit(write(answer[1], &failure, sizeof failure) < 0);
    }
    close(answer[1]);
    if (read(answer[0], &failure, sizeof failure) < 0)
        failure.value = errno;
    close(answer[0]);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    *reason = 0;
    if (*failure.step)
        snprintf(reason, room, "%s: %s", failure.step, strerror(failure.value));
    return !*failure.step;
}
