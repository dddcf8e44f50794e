/* See sandbox.h. The order of steps, for one sandbox:
 *
 *   supervisor  clones init with all namespaces at once; for a run of an importer, a helper clones it
 *   init        makes the sandbox from inside (init_main), forks the pre-created process unless the zygote does, and
 *               sends the writable directories and listening sockets
 *   supervisor  asks the zygote to fork the process, if init has not; passes the listener of the process's filter to
 *               init; when the process is ready and code has arrived, tells a process of the zygote whether the code has
 *               names of its modules, or lets it find out (job.h); then tells init to mount the code
 *   init        mounts the code, gives up its capabilities, stops being dumpable
 *   supervisor  writes the payload and sends the job to the process, which becomes the program
 *   init        serves netlink calls; if it forked the program: waits for the program's end, kills the other processes,
 *               and reports the end
 *   supervisor  reports the run, and then kills init; not earlier, because the kernel needs as long to remove the
 *               namespaces as a short run takes
 *
 * The supervisor never waits for these steps: the descriptors of sandbox_watch() show when the next message has
 * arrived, and sandbox_advance() then takes the next step.
 *
 * user_namespaces(7), pid_namespaces(7) */
#define _GNU_SOURCE
#include "sandbox.h"
#include "capture.h"
#include "control.h"
#include "descriptors.h"
#include "importer.h"
#include "namespaces.h"
#include "sandbox_init.h"
#include "zygote.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KILL_TIMEOUT_MS 3000

/* ---- messages ----------------------------------------------------------------------------------------- */

static void send_command(const struct sandbox *sandbox, enum command command)
{
    const char byte = (char)command;
    send(sandbox->control, &byte, 1, MSG_NOSIGNAL);
}

/* Take the descriptors that came with REPORT_MADE. `bound` is the value of the report. */
static void take_descriptors(struct sandbox *sandbox, unsigned bound, const int *handed, size_t count)
{
    int has_anchor = sandbox->parent == PARENT_IMPORTER;
    if (count != WRITABLE_COUNT + (size_t)__builtin_popcount(bound) + (size_t)has_anchor)
        return;
    if (has_anchor)
        sandbox->anchor = handed[count - 1];
    memcpy(sandbox->dirs.directory, handed, sizeof sandbox->dirs.directory);
    const int *next = handed + WRITABLE_COUNT;
    for (unsigned i = 0; i < MAX_LISTENING_SOCKETS; i++)
        sandbox->listening.socket[i] = bound & 1u << i ? *next++ : -1;
}

/* Receive one report. If init has ended, `report` gets the type REPORT_ERROR. Return 0 if MSG_DONTWAIT is among the
 * flags and no report has arrived. */
static int receive_report(struct sandbox *sandbox, struct report *report, int flags)
{
    int handed[MAX_DESCRIPTORS];
    size_t count;
    ssize_t got = descriptors_receive(sandbox->control, report, sizeof *report, handed, MAX_DESCRIPTORS, &count, flags);
    if (got < 0 && errno == EAGAIN)
        return 0;
    if (got != sizeof *report)
        *report = (struct report){.type = REPORT_ERROR, .value = got < 0 ? errno : ECHILD, .step = "a sandbox ended"};
    else if (report->type == REPORT_MADE) {
        sandbox->pid_namespace = report->pid_namespace;
        take_descriptors(sandbox, (unsigned)report->value, handed, count);
    }
    return 1;
}

static void fail(struct sandbox *sandbox, const struct report *report)
{
    sandbox->failure = *report;
    sandbox->stage = STAGE_FAILED;
}

void sandbox_die(const struct sandbox *sandbox)
{
    errno = sandbox->failure.value;
    die("a sandbox cannot be created: %s", sandbox->failure.step);
}

/* ---- creation ----------------------------------------------------------------------------------------- */

/* Create the pipes and sockets between the supervisor and the sandbox. The sandbox's ends go to `process`
 * and `control`. The importer receives messages, not a job. */
static void open_channels(struct sandbox *sandbox, int *control, int is_importer)
{
    int to_init[2], job[2], in[2], out[2], err[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, to_init) ||
        socketpair(AF_UNIX, (is_importer ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC, 0, job) || pipe2(in, O_CLOEXEC) || capture_pipe(out) ||
        capture_pipe(err))
        die("no pipes");
    *sandbox = (struct sandbox){
        .control = to_init[0], .job = job[0], .in = in[1], .out = out[0], .err = err[0], .names = NAMES_UNKNOWN,
        .init_pidfd = -1, .creation = {-1, -1}, .anchor = -1, .filter_listener = -1,
        .process = {[PROCESS_JOB] = job[1], [PROCESS_IN] = in[0], [PROCESS_OUT] = out[1], [PROCESS_ERR] = err[1]},
    };
    memset(&sandbox->listening, -1, sizeof sandbox->listening);
    memset(&sandbox->dirs, -1, sizeof sandbox->dirs);
    *control = to_init[1];
}

static void close_anchor(struct sandbox *sandbox)
{
    if (sandbox->anchor >= 0)
        close(sandbox->anchor);
    sandbox->anchor = -1;
}

static void close_process_ends(struct sandbox *sandbox)
{
    for (int i = 0; i < PROCESS_DESCRIPTORS; i++)
        if (sandbox->process[i] >= 0)
            close(sandbox->process[i]);
    memset(sandbox->process, -1, sizeof sandbox->process);
}

static enum program_parent parent_for(enum kind kind)
{
    return kind == KIND_EXEC ? PARENT_INIT : kind == KIND_IMPORTER ? PARENT_IMPORTER : PARENT_ZYGOTE;
}

static pid_t clone_init(struct sandbox_plan *plan, int *pidfd)
{
    plan->run_namespace = -1;
    pid_t init = (pid_t)syscall(SYS_clone, (unsigned long)(SANDBOX_NAMESPACES | CLONE_PIDFD | SIGCHLD), NULL, pidfd,
                                NULL, 0);
    if (init == 0)
        init_main(*plan);
    return init;
}

/* Note the number of init, 0 if a helper has not cloned it yet, or -1 with errno. */
static void note_init(struct sandbox *sandbox, pid_t init)
{
    if (init > 0) {
        sandbox->init = init;
        sandbox->stage = STAGE_CLONED;
    } else if (init < 0) {
        fail(sandbox, &(struct report){.value = errno, .step = "clone with new namespaces"});
        sandbox->init_pidfd = -1;
    }
}

void sandbox_begin(struct sandbox *sandbox, const struct work_limits *work, const struct confinement *confinement,
                   enum kind kind)
{
    struct sandbox_plan plan = {.confinement = *confinement, .work = *work};
    open_channels(sandbox, &plan.control, confinement->importer);
    sandbox->confinement = *confinement;
    sandbox->kind = kind;
    sandbox->parent = parent_for(kind);
    if (sandbox->parent == PARENT_INIT)
        memcpy(plan.process, sandbox->process, sizeof plan.process);
    else
        memset(plan.process, -1, sizeof plan.process);
    if (sandbox->parent == PARENT_IMPORTER)
        note_init(sandbox, importer_begin_init(&plan, &sandbox->creation));
    else
        note_init(sandbox, clone_init(&plan, &sandbox->init_pidfd));
    close(plan.control);
    if (sandbox->parent == PARENT_INIT)
        close_process_ends(sandbox);
}

void sandbox_serve_netlink(const struct sandbox *sandbox, int listener)
{
    const char byte = COMMAND_SERVE_NETLINK;
    descriptors_send(sandbox->control, &byte, 1, &listener, 1, 0);
}

/* Pass the listener of a process's filter on to init, which is in the same network. */
static void pass_listener_on(struct sandbox *sandbox, int listener)
{
    sandbox_serve_netlink(sandbox, listener);
    if (sandbox->confinement.importer && sandbox->filter_listener < 0)
        sandbox->filter_listener = listener;
    else
        close(listener);
}

static const struct report process_ended = {.value = ECHILD, .step = "a pre-created process ended"};

static void note_report(struct sandbox *sandbox, const struct report *report)
{
    if (report->type == REPORT_MADE && sandbox->parent == PARENT_ZYGOTE) {
        sandbox->fork_ticket = zygote_request_fork(sandbox->init_pidfd, sandbox->process, &sandbox->confinement);
        close_process_ends(sandbox);
        sandbox->stage = STAGE_FORKING;
    } else if (report->type == REPORT_MADE && sandbox->parent == PARENT_IMPORTER) {
        importer_request_fork(sandbox->job, sandbox->process, sandbox->anchor, &sandbox->confinement);
        close_process_ends(sandbox);
        close_anchor(sandbox);
        sandbox->stage = STAGE_STARTING;
    } else if (report->type == REPORT_MADE) {
        sandbox->stage = STAGE_STARTING;
    } else if (report->type == REPORT_ATTACHED) {
        sandbox->stage = STAGE_ATTACHED;
    } else if (report->type == REPORT_ERROR) {
        fail(sandbox, report);
    } else { /* REPORT_PROGRAM_ENDED */
        fail(sandbox, &process_ended);
    }
}

static void note_fork(struct sandbox *sandbox)
{
    if (!zygote_has_forked(sandbox->fork_ticket, &sandbox->zygote_child))
        return;
    sandbox->stage = STAGE_STARTING;
    if (!sandbox->zygote_child)
        fail(sandbox, &(struct report){.value = ECHILD, .step = "the zygote cannot fork"});
}

static void begin_to_attach(struct sandbox *sandbox)
{
    send_command(sandbox, COMMAND_ATTACH_CODE);
    sandbox->stage = STAGE_ATTACHING;
}

static void note_names(struct sandbox *sandbox, char answer)
{
    sandbox->names = answer == NAMES_FREE ? NAMES_FREE : NAMES_TAKEN;
    begin_to_attach(sandbox);
}

/* Let the process wait for its job if it is what the importer should have forked. */
static void admit(struct sandbox *sandbox)
{
    static const struct report refused = {.value = EPERM, .step = "the importer has forked no proper process"};
    enum admission admission = importer_admit(sandbox->job, sandbox->pid_namespace, &sandbox->importer_child);
    if (admission == ADMISSION_PENDING)
        return;
    if (admission == ADMISSION_GRANTED)
        sandbox->stage = STAGE_WAITING;
    else
        fail(sandbox, &refused);
}

/* Receive a message of the pre-created process. Its socket is closed when the process has ended. */
static void note_message(struct sandbox *sandbox)
{
    char byte;
    int listener = -1;
    size_t count;
    if (sandbox->parent == PARENT_IMPORTER && sandbox->stage == STAGE_STARTING) {
        admit(sandbox);
        return;
    }
    ssize_t got = descriptors_receive(sandbox->job, &byte, 1, &listener, 1, &count, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (count && (byte != JOB_CONFINED || sandbox->parent == PARENT_IMPORTER))
        close(listener); /* a fork of an importer is untrusted, and has no listener */
    else if (got == 1 && byte == JOB_CONFINED && count)
        pass_listener_on(sandbox, listener);
    else if (got == 1 && byte == JOB_READY && sandbox->stage == STAGE_STARTING)
        sandbox->stage = STAGE_WAITING;
    else if (got == 1 && sandbox->stage == STAGE_EXAMINING)
        note_names(sandbox, byte);
    else if (got <= 0)
        fail(sandbox, &process_ended);
}

/* Whether init has nothing to report. If init ends, the pre-created process ends too, and its socket is closed. */
static int is_idle(const struct sandbox *sandbox)
{
    return sandbox->stage == STAGE_WAITING || sandbox->stage == STAGE_EXAMINING || sandbox->stage == STAGE_ATTACHED;
}

size_t sandbox_watch(const struct sandbox *sandbox, struct pollfd events[SANDBOX_EVENTS])
{
    size_t count = 0;
    if (sandbox->stage == STAGE_FAILED)
        return 0;
    if (sandbox->stage == STAGE_CLONING)
        events[count++] = (struct pollfd){sandbox->creation.answer, POLLIN, 0};
    else if (!is_idle(sandbox))
        events[count++] = (struct pollfd){sandbox->control, POLLIN, 0};
    if (sandbox->stage >= STAGE_STARTING)
        events[count++] = (struct pollfd){sandbox->job, POLLIN, 0};
    return count;
}

void sandbox_advance(struct sandbox *sandbox)
{
    static const struct report zygote_ended = {.value = ECHILD, .step = "the zygote ended"};
    static const struct report importer_ended = {.value = ECHILD, .step = "the importer ended"};
    enum stage before;
    do {
        struct report report;
        before = sandbox->stage;
        if (sandbox->stage == STAGE_CLONING)
            note_init(sandbox, importer_namespaces_take_init(&sandbox->creation, &sandbox->init_pidfd));
        else if (!is_idle(sandbox) && sandbox->stage != STAGE_FAILED && receive_report(sandbox, &report, MSG_DONTWAIT))
            note_report(sandbox, &report); /* first, because it names the step that has failed */
        if (sandbox->stage == STAGE_FORKING)
            note_fork(sandbox);
        if (sandbox->stage >= STAGE_STARTING && sandbox->stage != STAGE_FAILED)
            note_message(sandbox);
        if (sandbox->zygote_child && !zygote_is_running())
            fail(sandbox, &zygote_ended); /* nobody would report the end of the program */
        if (sandbox->parent == PARENT_IMPORTER && !is_idle(sandbox) && sandbox->stage != STAGE_FAILED &&
            !importer_is_running())
            fail(sandbox, &importer_ended);
    } while (sandbox->stage != before && sandbox->stage != STAGE_FAILED);
}

void sandbox_attach_code(struct sandbox *sandbox, enum names names)
{
    /* The importer has found out that its code has no such names, before it has imported anything. */
    const char byte = sandbox->parent == PARENT_IMPORTER ? NAMES_FREE : (char)names;
    sandbox->names = names;
    /* If the process has ended, its socket shows that later. */
    if (sandbox->kind == KIND_ZYGOTE || sandbox->kind == KIND_IMPORTER)
        send(sandbox->job, &byte, 1, MSG_NOSIGNAL);
    if (sandbox->kind == KIND_ZYGOTE && names == NAMES_UNKNOWN)
        sandbox->stage = STAGE_EXAMINING;
    else
        begin_to_attach(sandbox);
}

/* ---- from the job to the program's end ---------------------------------------------------------------- */

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
    struct pollfd event = {sandbox->control, POLLIN, 0};
    /* A package of an importer can stop the init of a run. All other inits answer. */
    int limit_ms = sandbox->parent == PARENT_IMPORTER ? KILL_TIMEOUT_MS : -1;
    send_command(sandbox, COMMAND_KILL_RUN); /* if init has ended, the next call returns an error */
    do {
        int ready = poll(&event, 1, limit_ms);
        if (!ready)
            return 0;
        if (ready < 0)
            continue;
        receive_report(sandbox, &report, 0);
    } while (report.type != REPORT_ERROR && report.type != REPORT_RUN_KILLED);
    return report.type == REPORT_RUN_KILLED;
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

/* ---- removal ------------------------------------------------------------------------------------------ */

void sandbox_begin_kill(const struct sandbox *sandbox)
{
    /* Not kill(2): if the kernel has killed init for its memory, its number may belong to another process. */
    syscall(SYS_pidfd_send_signal, sandbox->init_pidfd, SIGKILL, NULL, 0);
}

/* Whether init has ended and is reaped. */
static int is_reaped(const struct sandbox *sandbox)
{
    siginfo_t info = {.si_pid = 0};
    if (waitid(P_PIDFD, (id_t)sandbox->init_pidfd, &info, WEXITED | WNOHANG))
        return errno == ECHILD; /* a wait for another sandbox has reaped it */
    return info.si_pid != 0;
}

void sandbox_kill(struct sandbox *sandbox)
{
    pid_t pid;
    sandbox_begin_kill(sandbox);
    if (sandbox->parent == PARENT_IMPORTER)
        importer_await_end(sandbox->init_pidfd);
    /* Init ends only when every process in its namespace has been reaped. The zygote reaps its own
     * children. If the zygote has ended, they are children of the supervisor. So wait for any child. */
    while (!is_reaped(sandbox)) {
        if ((pid = waitpid(-1, NULL, 0)) > 0)
            zygote_note_reaped(pid);
        if (pid == sandbox->init || (pid < 0 && errno != EINTR))
            break;
    }
    sandbox->init = 0;
}

void sandbox_close(struct sandbox *sandbox)
{
    for (int i = 0; i < WRITABLE_COUNT; i++)
        if (sandbox->dirs.directory[i] >= 0)
            close(sandbox->dirs.directory[i]);
    listening_close(&sandbox->listening);
    close(sandbox->control);
    close(sandbox->job);
    if (sandbox->init_pidfd >= 0)
        close(sandbox->init_pidfd);
    if (sandbox->filter_listener >= 0)
        close(sandbox->filter_listener);
}

void sandbox_discard(struct sandbox *sandbox)
{
    struct zygote_exit ignored;
    if (!sandbox->init)
        sandbox->init = importer_namespaces_cancel_clone(&sandbox->creation, &sandbox->init_pidfd);
    if (sandbox->init)
        sandbox_begin_kill(sandbox);
    if (sandbox->stage == STAGE_FORKING)
        sandbox->zygote_child = zygote_await_fork(sandbox->fork_ticket);
    if (sandbox->init)
        sandbox_kill(sandbox);
    if (sandbox->zygote_child)
        zygote_await_exit(sandbox->zygote_child, &ignored);
    if (sandbox->importer_child)
        importer_forget(sandbox->importer_child);
    close_process_ends(sandbox);
    close_anchor(sandbox);
    close(sandbox->in);
    close(sandbox->out);
    close(sandbox->err);
    sandbox_close(sandbox);
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

static void wait_until(struct sandbox *sandbox, enum stage stage)
{
    struct pollfd events[SANDBOX_EVENTS];
    for (sandbox_advance(sandbox); sandbox->stage < stage; sandbox_advance(sandbox))
        poll(events, sandbox_watch(sandbox, events), -1);
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
    sandbox_begin(&sandbox, work, &confinement, KIND_EXEC);
    wait_until(&sandbox, STAGE_WAITING);
    if (sandbox.stage == STAGE_WAITING) {
        sandbox_attach_code(&sandbox, NAMES_UNKNOWN);
        wait_until(&sandbox, STAGE_ATTACHED);
    }
    failure = sandbox.failure;
    sandbox_discard(&sandbox); /* otherwise init would become a zombie child of process 1 */
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
