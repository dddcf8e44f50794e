/* See launcher.h. */
#define _GNU_SOURCE
#include "launcher.h"
#include "residue.h"
#include "wire.h"
#include "writable.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int worker = -1;      /* the connection */
static int child_ended = -1; /* signalfd: SIGCHLD, which is blocked */
static pid_t supervisor;     /* 0: none runs */

int launcher_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("socket path too long");
    strcpy(address.sun_path, path);
    worker = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (worker >= 0 && !connect(worker, (struct sockaddr *)&address, sizeof address))
        return 1;
    launcher_disconnect();
    return 0;
}

void launcher_disconnect(void)
{
    close(worker);
    worker = -1;
}

/* ---- the supervisor ----------------------------------------------------------------------------------- */

/* The new program has new memory at new addresses. Every descriptor of the launcher is closed on execution. */
static void start_supervisor(void)
{
    char *const arguments[] = {"/nanosupervisor/supervisor", SUPERVISOR_ARGUMENT, NULL};
    supervisor = fork();
    if (supervisor < 0)
        die("fork");
    if (supervisor)
        return;
    execve("/proc/self/exe", arguments, environ);
    die("cannot execute the supervisor");
}

/* Reap all processes that have ended. Orphans of the container are children of process 1. */
static void reap(void)
{
    struct signalfd_siginfo ignored;
    int status;
    pid_t pid;
    if (read(child_ended, &ignored, sizeof ignored) < 0 && errno != EAGAIN)
        die("signalfd");
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == supervisor)
            _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

/* A process that has received SIGKILL cannot fork any more, so one pass reaches all processes (kernel/fork.c). A process
 * that the launcher may not kill, because it has another user id, is residue. */
static void kill_others(void)
{
    supervisor = 0;
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

/* ---- the worker --------------------------------------------------------------------------------------- */

static void answer(enum launcher_message type, const char *text)
{
    char message[1 + RESIDUE_TEXT] = {(char)type};
    strncpy(message + 1, text, RESIDUE_TEXT - 1);
    if (send(worker, message, 1 + strlen(text), MSG_NOSIGNAL) < 0)
        _exit(0);
}

static void clean(void)
{
    char text[RESIDUE_TEXT];
    kill_others();
    if (!writable_wipe())
        answer(LAUNCHER_HAS_RESIDUE, "a file that cannot be removed");
    else if (residue_exists(text))
        answer(LAUNCHER_HAS_RESIDUE, text);
    else
        answer(LAUNCHER_IS_CLEAN, "");
}

/* Descriptors that come with a message are not received: recv(2) has no room for them, so the kernel closes them. */
static void obey(void)
{
    char command;
    if (recv(worker, &command, 1, 0) <= 0)
        _exit(0); /* the worker does not need the container any more */
    if (command == LAUNCHER_CLEAN)
        clean();
    else if (command == LAUNCHER_START && !supervisor)
        start_supervisor();
    else
        _exit(125);
}

void launcher_main(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    child_ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (child_ended < 0)
        die("signalfd");
    residue_note_start();
    start_supervisor();
    for (;;) {
        struct pollfd events[] = {{worker, POLLIN, 0}, {child_ended, POLLIN, 0}};
        if (poll(events, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (events[0].revents)
            obey();
        if (events[1].revents)
            reap();
    }
}
