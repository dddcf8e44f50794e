/* See zygote_server.h. */
#define _GNU_SOURCE
#include "zygote_server.h"
#include "confine.h"
#include "descriptors.h"
#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3
#define SETUP_FAILED 125 /* exit status of a forked process that could not enter its sandbox or confine itself */

static int child_ended = -1; /* signalfd: SIGCHLD, which is blocked */
static int own_pid_namespace = -1;

/* ---- the zygote itself ------------------------------------------------------------------------------- */

void zygote_set_up(void)
{
    sigset_t child;
    int filler;
    while ((filler = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && filler <= CONTROL)
        ; /* forked processes replace 0 to 3, so nothing else may have these numbers here */
    close(filler);
    own_pid_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    child_ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    /* A run has the same user id. It must not be able to inspect this process or a pre-created one. */
    prctl(PR_SET_DUMPABLE, 0);
}

/* ---- a process for a run ------------------------------------------------------------------------------ */

void zygote_fail(const char *step)
{
    dprintf(STDERR_FILENO, "nanosupervisor: a process for the run could not be created: %s: %s\n", step,
            strerror(errno));
    _exit(SETUP_FAILED);
}

/* The signal handlers remain, because any interpreter has these handlers. */
static void unblock_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The received descriptors have higher numbers than their targets here, because zygote_set_up() has filled the low
 * numbers. */
static void take_descriptors(const int *descriptors)
{
    if (dup2(descriptors[PROCESS_IN], STDIN_FILENO) < 0 || dup2(descriptors[PROCESS_OUT], STDOUT_FILENO) < 0 ||
        dup2(descriptors[PROCESS_ERR], STDERR_FILENO) < 0 || dup2(descriptors[PROCESS_JOB], JOB_SOCKET) < 0)
        zygote_fail("take its descriptors");
    if (close_range(JOB_SOCKET + 1, ~0u, 0))
        zygote_fail("close the zygote's descriptors");
}

void zygote_become_run(const int *descriptors)
{
    take_descriptors(descriptors);
    unblock_signals();
    if (chdir("/"))
        zygote_fail("chdir to its root");
}

static void enter_sandbox(const struct fork_request *request, const int *descriptors)
{
    uint32_t namespaces = request->namespaces & ~(uint32_t)CLONE_NEWPID; /* the fork has entered this one */
    if (namespaces && setns(descriptors[FORK_INIT], (int)namespaces))
        zygote_fail("enter its namespaces");
    zygote_become_run(descriptors);
    if (confine(&request->confinement, JOB_SOCKET))
        zygote_fail("confine");
}

static void call(void (*hook)(void))
{
    if (hook)
        hook();
}

/* Fork a process into a sandbox. Return its number or a negative errno; in the process itself, 0. */
static int32_t fork_process(const struct fork_request *wanted, const struct zygote_request *request,
                            const struct zygote_hooks *hooks)
{
    int enters = wanted->namespaces != 0;
    pid_t pid;
    if (request->descriptor_count != (enters ? FORK_DESCRIPTORS : FORK_DESCRIPTORS - 1))
        return -EINVAL;
    if (enters && setns(request->descriptors[FORK_INIT], CLONE_NEWPID))
        return -errno;
    call(hooks->before_fork);
    pid = fork();
    if (pid == 0) {
        enter_sandbox(wanted, request->descriptors);
        call(hooks->after_fork_in_process);
        return 0;
    }
    int failure = errno;
    call(hooks->after_fork_in_zygote);
    /* Release the sandbox's process namespace. In most set-ups this fails, because the zygote has no rights
     * over the container's process namespace. Then the next fork releases it. */
    if (enters)
        (void)!setns(own_pid_namespace, CLONE_NEWPID);
    return pid > 0 ? pid : -failure;
}

/* ---- messages ----------------------------------------------------------------------------------------- */

void zygote_answer(const void *message, size_t size)
{
    if (send(CONTROL, message, size, MSG_NOSIGNAL) < 0)
        _exit(0); /* the supervisor has ended, and the container with it */
}

void zygote_receive(struct zygote_request *request)
{
    ssize_t got = descriptors_receive(CONTROL, request->bytes, MAX_ZYGOTE_MESSAGE, request->descriptors,
                                      FORK_DESCRIPTORS, &request->descriptor_count, 0);
    if (got <= 0)
        _exit(0);
    request->length = (size_t)got;
}

static uint64_t microseconds(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_usec;
}

static void report_ended(void)
{
    struct signalfd_siginfo signals;
    struct rusage use;
    int status;
    pid_t pid;
    (void)!read(child_ended, &signals, sizeof signals); /* one signal may stand for several ends */
    while ((pid = wait4(-1, &status, WNOHANG, &use)) > 0) {
        const struct ended ended = {ZYGOTE_ENDED, pid, status, microseconds(use.ru_utime), microseconds(use.ru_stime)};
        zygote_answer(&ended, sizeof ended);
    }
}

/* Serve one ZYGOTE_FORK. Return 1 in the zygote, 0 in the new process. */
static int serve_fork(const struct zygote_request *request, const struct zygote_hooks *hooks)
{
    struct fork_request wanted;
    struct forked forked = {ZYGOTE_FORKED, -EINVAL};
    if (request->length == sizeof wanted) {
        memcpy(&wanted, request->bytes, sizeof wanted);
        forked.pid = fork_process(&wanted, request, hooks);
        if (forked.pid == 0)
            return 0;
    }
    for (size_t i = 0; i < request->descriptor_count; i++)
        close(request->descriptors[i]);
    zygote_answer(&forked, sizeof forked);
    return 1;
}

int zygote_serve(struct zygote_request *request, const struct zygote_hooks *hooks)
{
    struct pollfd events[] = {{CONTROL, POLLIN, 0}, {child_ended, POLLIN, 0}};
    for (;;) {
        if (poll(events, 2, -1) < 0)
            continue;
        if (events[1].revents)
            report_ended();
        if (!events[0].revents)
            continue;
        zygote_receive(request);
        if (request->bytes[0] == ZYGOTE_PRELOAD)
            return 1;
        if (request->bytes[0] == ZYGOTE_FORK && !serve_fork(request, hooks))
            return 0;
    }
}
