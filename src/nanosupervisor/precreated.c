/* See precreated.h. */
#define _GNU_SOURCE
#include "precreated.h"
#include "sandbox_init.h"
#include "writable.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void receive(void *buffer, size_t length)
{
    for (char *at = buffer; length;) {
        ssize_t got = read(JOB_SOCKET, at, length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(0); /* the sandbox is not needed */
        at += got;
        length -= (size_t)got;
    }
}

/* Return an array of pointers to `count` strings at `at`, and move `at` behind them. NULL: no memory. */
static char **split(char **at, uint32_t count)
{
    char **strings = calloc(count + 1u, sizeof *strings);
    for (uint32_t i = 0; strings && i < count; i++) {
        strings[i] = *at;
        *at += strlen(*at) + 1;
    }
    return strings;
}

/* Receive the job and execute it. Returns only if that fails, with errno. */
static void execute_job(void)
{
    struct job job;
    receive(&job, sizeof job);
    char *strings = malloc(job.length + 1u);
    if (!strings)
        return;
    receive(strings, job.length);
    strings[job.length] = 0;
    char **arguments = split(&strings, job.argument_count);
    char **environment = split(&strings, job.environment_count);
    if (arguments && environment && !chdir(WORK_DIR)) {
        fcntl(JOB_SOCKET, F_SETFD, FD_CLOEXEC);
        execve(arguments[0], arguments, environment);
    }
}

__attribute__((noreturn)) static void wait_for_job(void)
{
    const char ready = JOB_READY;
    if (write(JOB_SOCKET, &ready, 1) != 1)
        _exit(0);
    execute_job();
    uint32_t error = (uint32_t)errno;
    if (write(JOB_SOCKET, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}

void precreated_main(const int own[PROCESS_DESCRIPTORS], const struct confinement *confinement)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    must(dup2(own[PROCESS_IN], 0) < 0 || dup2(own[PROCESS_OUT], 1) < 0 || dup2(own[PROCESS_ERR], 2) < 0, "descriptors");
    must(confine(confinement, own[PROCESS_JOB]), "confine");
    /* Replaces init's control socket: no report can be sent from here on. */
    dup2(own[PROCESS_JOB], JOB_SOCKET);
    close_range(JOB_SOCKET + 1, ~0u, 0);
    wait_for_job();
}
