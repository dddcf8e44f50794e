/* See sandbox_init.h. Messages between the supervisor and init are described in control.h. */
#define _GNU_SOURCE
#include "sandbox_init.h"
#include "anchor.h"
#include "control.h"
#include "descriptors.h"
#include "listening.h"
#include "loopback.h"
#include "namespaces.h"
#include "netlink.h"
#include "precreated.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3 /* init's descriptor of the control socket */
/* The run's program, those of the sandboxes that wait, and one that is discarded. */
#define MAX_WATCHED 8

static struct writable_dirs dirs; /* the sandbox's own; WRITABLE_WORK is the tmpfs for changes to the code */
static pid_t program = -1;        /* the pre-created process, if init has forked it */
static int child_ended = -1;      /* signalfd: SIGCHLD */
static int filter_listener = -1;  /* of the run's filter: netlink calls wait there */
static int has_importer;          /* the sandbox is for a run of an importer */
static pid_t anchor;              /* in a sandbox for a run of the importer, until the code is mounted */
/* In the importer's sandbox: the programs of its runs; 0: free. */
static pid_t watched[MAX_WATCHED];

static void send_report(const struct report *report)
{
    send(CONTROL, report, sizeof *report, MSG_NOSIGNAL);
}

static void report(enum report_type type, int32_t value, const char *step)
{
    struct report report = {.type = (char)type, .value = value};
    snprintf(report.step, sizeof report.step, "%s", step);
    send_report(&report);
}

void must(int failed, const char *step)
{
    if (!failed)
        return;
    report(REPORT_ERROR, errno, step);
    _exit(1);
}

/* ---- making the sandbox ------------------------------------------------------------------------------- */

/* Give the descriptors that init needs the numbers from CONTROL on, and close all others. First move them
 * above all target numbers, so that no move overwrites a descriptor that is still needed. */
static void setup_descriptors(struct sandbox_plan *plan)
{
    enum { ABOVE = 100, MOST = 2 + PROCESS_DESCRIPTORS + WRITABLE_COUNT };
    int *kept[MOST], count = 0;
    kept[count++] = &plan->control;
    for (int i = 0; i < PROCESS_DESCRIPTORS; i++)
        if (plan->process[i] >= 0)
            kept[count++] = &plan->process[i];
    for (int i = 0; i < WRITABLE_COUNT; i++)
        kept[count++] = &container_dirs.directory[i];
    if (plan->run_namespace >= 0)
        kept[count++] = &plan->run_namespace;
    for (int i = 0; i < count; i++)
        *kept[i] = fcntl(*kept[i], F_DUPFD, ABOVE);
    close_range(0, ABOVE - 1, 0);
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1);
    dup2(null, 2);
    for (int i = 0; i < count; i++)
        *kept[i] = dup2(*kept[i], CONTROL + i);
    close_range((unsigned)(CONTROL + count), ~0u, 0);
}

static void setup_user(void)
{
    must(namespaces_map_user(RUN_USER, RUN_USER), "map the user of a sandbox");
}

static void setup_host_name(void)
{
    must(sethostname("sandbox", 7), "sethostname");
}

static void fork_precreated_process(const struct sandbox_plan *plan)
{
    if (plan->process[PROCESS_JOB] < 0)
        return;
    program = fork();
    must(program < 0, "fork");
    if (program == 0)
        precreated_main(plan->process, &plan->confinement);
    for (int i = 0; i < PROCESS_DESCRIPTORS; i++)
        close(plan->process[i]);
}

static int start_anchor(int run_namespace)
{
    int pidfd = anchor_start(run_namespace, &anchor);
    must(pidfd < 0, "start the anchor");
    close(run_namespace);
    return pidfd;
}

static void setup_child_signals(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    child_ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    must(child_ended < 0, "signalfd");
}

_Static_assert(WRITABLE_COUNT + MAX_LISTENING_SOCKETS + 1 <= MAX_DESCRIPTORS, "REPORT_MADE has too many descriptors");

/* Open the listening sockets, and send them with the writable directories and the pidfd of the anchor, which is -1 if
 * there is no anchor. */
static void report_made(int anchor_pidfd)
{
    struct listening_sockets sockets;
    struct report made = {.type = REPORT_MADE};
    struct stat namespace;
    int handed[MAX_DESCRIPTORS];
    size_t count = WRITABLE_COUNT;
    must(stat("/proc/self/ns/pid", &namespace), "stat the process namespace");
    made.pid_namespace = namespace.st_ino;
    listening_open(&sockets);
    memcpy(handed, dirs.directory, sizeof dirs.directory);
    for (unsigned i = 0; i < MAX_LISTENING_SOCKETS; i++)
        if (sockets.socket[i] >= 0) {
            made.value |= 1 << i;
            handed[count++] = sockets.socket[i];
        }
    if (anchor_pidfd >= 0)
        handed[count++] = anchor_pidfd;
    must(descriptors_send(CONTROL, &made, sizeof made, handed, count, 0), "send the descriptors of the sandbox");
    listening_close(&sockets);
    if (anchor_pidfd >= 0)
        close(anchor_pidfd);
}

static void close_directories(void)
{
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        close(container_dirs.directory[i]);
        if (i != WRITABLE_WORK)
            close(dirs.directory[i]);
    }
}

/* ---- serving the supervisor --------------------------------------------------------------------------- */

/* Reap processes that have ended. Return whether init has other children.
 *
 * When a process ends, the kernel makes its children those of init, or of an ancestor that has asked for them. A run
 * cannot give a process to a parent outside the sandbox (CLONE_PARENT, filter.c). So after the program's end, init
 * has a child while any process of the run is left. */
static int has_children(void)
{
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG | __WALL)) > 0)
        ;
    return pid == 0;
}

/* Kill and reap every process except init, after the program has ended. A process that has received SIGKILL cannot
 * fork any more, so one pass reaches all processes. kernel/fork.c
 *
 * kill(-1) looks at every process of the host, and most programs leave none behind. It cannot be left out if an
 * importer exists: a package can move a process into the sandbox whose parent is outside. */
static void kill_run(void)
{
    if (!has_children() && !has_importer)
        return;
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR)
        ;
}

/* Return the entry of a watched process, or NULL. Pid 0: return a free entry. */
static pid_t *entry_of(pid_t pid)
{
    for (size_t i = 0; i < MAX_WATCHED; i++)
        if (watched[i] == pid)
            return &watched[i];
    return NULL;
}

static void report_child(pid_t pid, int status, const struct rusage *use)
{
    const struct report ended = {
        .type = REPORT_CHILD_ENDED,
        .value = status,
        .pid = pid,
        .user_us = (uint64_t)use->ru_utime.tv_sec * 1000000u + (uint64_t)use->ru_utime.tv_usec,
        .system_us = (uint64_t)use->ru_stime.tv_sec * 1000000u + (uint64_t)use->ru_stime.tv_usec,
    };
    send_report(&ended);
}

/* A process that has ended before it was watched was killed. Nobody else waits for it, because the process that has
 * forked it has ended. */
static void watch_process(pid_t pid)
{
    const struct rusage unknown = {0};
    pid_t *entry = entry_of(0);
    if (!entry || kill(pid, 0))
        report_child(pid, SIGKILL, &unknown);
    else
        *entry = pid;
}

/* Reap processes that have ended. If the program is among them, kill the others and report its end. */
static void reap(void)
{
    struct rusage use;
    int status;
    pid_t pid, *entry;
    while ((pid = wait4(-1, &status, WNOHANG, &use)) > 0)
        if (pid == program) {
            kill_run();
            report(REPORT_PROGRAM_ENDED, status, "");
        } else if ((entry = entry_of(pid))) {
            *entry = 0;
            report_child(pid, status, &use);
        }
}

static void attach_code(void)
{
    int changes = dirs.directory[WRITABLE_WORK];
    if (anchor)
        anchor_stop(anchor);
    attach_work(changes);
    attach_slot(changes);
    close(changes);
    /* From now on a program may start. It has the same user id as init, so init gives up everything that
     * the program could take over. */
    must(prctl(PR_SET_DUMPABLE, 0) || confine_capabilities(), "give up capabilities");
    report(REPORT_ATTACHED, 0, "");
}

static void stop_serving_filter(void)
{
    if (filter_listener >= 0)
        close(filter_listener);
    filter_listener = -1;
}

/* Receive one command and carry it out. */
static void obey(void)
{
    struct command_message message = {0};
    int descriptor = -1;
    size_t count;
    if (descriptors_receive(CONTROL, &message, sizeof message, &descriptor, 1, &count, 0) <= 0)
        _exit(0); /* the supervisor has ended, and the container with it */
    switch ((enum command)message.command) {
    case COMMAND_ATTACH_CODE:
        attach_code();
        break;
    case COMMAND_SERVE_NETLINK:
        filter_listener = descriptor;
        break;
    case COMMAND_TERMINATE:
        kill(-1, SIGTERM);
        break;
    case COMMAND_KILL_RUN:
        kill_run();
        report(REPORT_RUN_KILLED, 0, "");
        break;
    case COMMAND_STOP_NETLINK:
        stop_serving_filter();
        report(REPORT_NETLINK_STOPPED, 0, "");
        break;
    case COMMAND_WATCH:
        watch_process(message.pid);
        break;
    }
}

/* Serve a netlink call. POLLHUP means that no process has the filter any more; then close the listener. */
static void serve_filter(short events)
{
    if ((events & POLLIN) && netlink_serve(filter_listener))
        return;
    stop_serving_filter();
}

__attribute__((noreturn)) static void serve(void)
{
    enum { COMMAND, CHILD, FILTER, EVENTS };
    for (;;) {
        struct pollfd events[EVENTS] = {
            [COMMAND] = {CONTROL, POLLIN, 0},
            [CHILD] = {child_ended, POLLIN, 0},
            [FILTER] = {filter_listener, POLLIN, 0},
        };
        struct signalfd_siginfo ignored;
        reap();
        poll(events, EVENTS, -1);
        if (events[CHILD].revents && read(child_ended, &ignored, sizeof ignored) < 0)
            errno = 0;
        if (events[FILTER].revents)
            serve_filter(events[FILTER].revents);
        if (events[COMMAND].revents)
            obey();
    }
}

void init_main(struct sandbox_plan plan)
{
    setup_descriptors(&plan);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (plan.run_namespace < 0)
        setup_user();
    setup_writable_dirs(&dirs, &plan.work);
    setup_proc();
    setup_host_name();
    /* An import has no network: between runs, nothing watches the kernel memory of the importer's sockets. */
    if (!plan.confinement.importer)
        setup_loopback();
    fork_precreated_process(&plan);
    setup_child_signals();
    has_importer = plan.run_namespace >= 0;
    int anchor_pidfd = has_importer ? start_anchor(plan.run_namespace) : -1;
    report_made(anchor_pidfd); /* opens the listening sockets after the fork, so that no process of the run has a copy */
    close_directories();
    serve();
}
