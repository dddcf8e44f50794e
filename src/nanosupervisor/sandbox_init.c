/* See sandbox_init.h. Messages between the supervisor and init are described in control.h. */
#define _GNU_SOURCE
#include "sandbox_init.h"
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
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3 /* init's descriptor of the control socket */

static struct writable_dirs dirs; /* the sandbox's own; WRITABLE_WORK is the tmpfs for changes to the code */
static pid_t program = -1;        /* the pre-created process, if init has forked it */
static int child_ended = -1;      /* signalfd: SIGCHLD */
static int filter_listener = -1;  /* of the run's filter: netlink calls wait there */

static void report(enum report_type type, int32_t value, const char *step)
{
    struct report report = {.type = (char)type, .value = value};
    snprintf(report.step, sizeof report.step, "%s", step);
    send(CONTROL, &report, sizeof report, MSG_NOSIGNAL);
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
    enum { ABOVE = 100, MOST = 1 + PROCESS_DESCRIPTORS + WRITABLE_COUNT };
    int *kept[MOST], count = 0;
    kept[count++] = &plan->control;
    for (int i = 0; i < PROCESS_DESCRIPTORS; i++)
        if (plan->process[i] >= 0)
            kept[count++] = &plan->process[i];
    for (int i = 0; i < WRITABLE_COUNT; i++)
        kept[count++] = &container_dirs.directory[i];
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

static void setup_child_signals(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    child_ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    must(child_ended < 0, "signalfd");
}

_Static_assert(WRITABLE_COUNT + MAX_LISTENING_SOCKETS <= MAX_DESCRIPTORS, "REPORT_MADE has too many descriptors");

/* Open the listening sockets, and send them with the writable directories. */
static void report_made(void)
{
    struct listening_sockets sockets;
    struct report made = {.type = REPORT_MADE};
    int handed[MAX_DESCRIPTORS];
    size_t count = WRITABLE_COUNT;
    listening_open(&sockets);
    memcpy(handed, dirs.directory, sizeof dirs.directory);
    for (unsigned i = 0; i < MAX_LISTENING_SOCKETS; i++)
        if (sockets.socket[i] >= 0) {
            made.value |= 1 << i;
            handed[count++] = sockets.socket[i];
        }
    must(descriptors_send(CONTROL, &made, sizeof made, handed, count, 0), "send the descriptors of the sandbox");
    listening_close(&sockets);
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
 * kill(-1) looks at every process of the host, and most programs leave none behind. */
static void kill_run(void)
{
    if (!has_children())
        return;
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR)
        ;
}

/* Reap processes that have ended. If the program is among them, kill the others and report its end. */
static void reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == program) {
            kill_run();
            report(REPORT_PROGRAM_ENDED, status, "");
        }
}

static void attach_code(void)
{
    int changes = dirs.directory[WRITABLE_WORK];
    attach_work(changes);
    attach_slot(changes);
    close(changes);
    /* From now on a program may start. It has the same user id as init, so init gives up everything that
     * the program could take over. */
    must(prctl(PR_SET_DUMPABLE, 0) || confine_capabilities(), "give up capabilities");
    report(REPORT_ATTACHED, 0, "");
}

/* Receive one command and carry it out. */
static void obey(void)
{
    char command;
    int descriptor = -1;
    size_t count;
    if (descriptors_receive(CONTROL, &command, 1, &descriptor, 1, &count, 0) <= 0)
        _exit(0); /* the supervisor has ended, and the container with it */
    switch ((enum command)command) {
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
    }
}

/* Serve a netlink call. POLLHUP means that no process has the filter any more; then close the listener. */
static void serve_filter(short events)
{
    if ((events & POLLIN) && netlink_serve(filter_listener))
        return;
    close(filter_listener);
    filter_listener = -1;
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
    setup_user();
    setup_writable_dirs(&dirs, &plan.work);
    setup_proc();
    setup_host_name();
    setup_loopback();
    fork_precreated_process(&plan);
    setup_child_signals();
    report_made(); /* opens the listening sockets after the fork, so that no process of the run has a copy */
    close_directories();
    serve();
}
