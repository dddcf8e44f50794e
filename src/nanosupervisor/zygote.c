/* See zygote.h. */
#define _GNU_SOURCE
#include "zygote.h"
#include "descriptors.h"
#include "namespaces.h"
#include "wire.h"
#include "zygote_protocol.h"

#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3 /* the zygote's descriptor of its socket */
#define ZYGOTE_DIR "/nanosupervisor/zygote" /* has a main.py, so that /proc/self/cmdline is that of a plain start */
#define START_TIMEOUT_MS 30000

static pid_t zygote; /* 0: it does not run */
static int control = -1;
static struct zygote_exit reported; /* an end that arrived while another message was awaited; pid 0: none */

union message {
    char type;
    struct forked forked;
    struct preloaded preloaded;
    struct ended ended;
};

/* ---- the process -------------------------------------------------------------------------------------- */

/* Keep the capabilities that the zygote needs to move a child into a sandbox: it calls setns(2) for each
 * namespace, and must be allowed to inspect the sandbox's init. They are valid only in the supervisor's
 * own user namespace and below. */
static int keep_capabilities(void)
{
    static const int needed[] = {CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYS_CHROOT, CAP_SETPCAP};
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct set[2];
    memset(set, 0, sizeof set);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        set[0].permitted |= 1u << needed[i];
    set[0].effective = set[0].inheritable = set[0].permitted;
    if (syscall(SYS_capset, &header, set))
        return -1;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, needed[i], 0, 0))
            return -1;
    return 0;
}

__attribute__((noreturn)) static void become_zygote(const struct interpreter *interpreter, int socket)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (chdir(ZYGOTE_DIR) || dup2(socket, CONTROL) < 0 || close_range(CONTROL + 1, ~0u, 0) || keep_capabilities())
        _exit(126);
    execve(interpreter->words[0], interpreter->words, interpreter_environment);
    _exit(127);
}

int zygote_is_running(void)
{
    return zygote > 0;
}

int zygote_fd(void)
{
    return control;
}

static void forget(void)
{
    close(control);
    zygote = 0;
    control = -1;
    reported.pid = 0;
}

void zygote_note_reaped(pid_t pid)
{
    if (pid > 0 && pid == zygote)
        forget();
}

static void stop(void)
{
    if (!zygote)
        return;
    kill(zygote, SIGKILL);
    while (waitpid(zygote, NULL, 0) < 0 && errno == EINTR)
        ;
    forget();
}

/* ---- messages ----------------------------------------------------------------------------------------- */

/* Receive the next message. If that fails, stop the zygote and return 0. */
static int receive(union message *message, int timeout_ms)
{
    struct pollfd event = {control, POLLIN, 0};
    int ready;
    if (!zygote)
        return 0;
    while ((ready = poll(&event, 1, timeout_ms)) < 0 && errno == EINTR)
        ;
    if (ready > 0 && recv(control, message, sizeof *message, 0) > 0)
        return 1;
    stop();
    return 0;
}

static void note_end(const struct ended *ended)
{
    reported = (struct zygote_exit){ended->pid, ended->status, ended->user_us, ended->system_us};
}

/* Wait for one type of message. Keep the end of a process that is reported meanwhile. Return 0 if the zygote
 * has failed. */
static int await(enum zygote_message type, union message *message, int timeout_ms)
{
    while (receive(message, timeout_ms)) {
        if (message->type == (char)type)
            return 1;
        if (message->type == ZYGOTE_ENDED)
            note_end(&message->ended);
    }
    return 0;
}

/* ---- modules ------------------------------------------------------------------------------------------ */

/* Append a name to a request; 0 if it has no room. */
static int append(char *request, size_t *length, const char *name)
{
    size_t size = strlen(name) + 1;
    if (size > MAX_ZYGOTE_MESSAGE - *length)
        return 0;
    memcpy(request + *length, name, size);
    *length += size;
    return 1;
}

/* Append the names in a directory; 0 if the request has no room, or the directory cannot be read. */
static int append_entries(char *request, size_t *length, int directory)
{
    DIR *entries = fdopendir(dup(directory));
    struct dirent *entry;
    int fits = 1;
    if (!entries)
        return 0;
    rewinddir(entries);
    while (fits && (entry = readdir(entries)))
        if (entry->d_name[0] != '.')
            fits = append(request, length, entry->d_name);
    closedir(entries);
    return fits;
}

/* See zygote_preload(); a directory of -1 has no entries. If the request is too long, it is not sent, and the
 * run imports its modules itself. */
static int preload(const char *modules, size_t length, int directory)
{
    static char request[MAX_ZYGOTE_MESSAGE];
    union message answer;
    size_t used = 0;
    request[used++] = ZYGOTE_PRELOAD;
    for (const char *at = modules; at < modules + length; at += strlen(at) + 1)
        if (!append(request, &used, at))
            return 1;
    append(request, &used, "");
    if (directory >= 0 && !append_entries(request, &used, directory))
        return 1;
    return send(control, request, used, MSG_NOSIGNAL) > 0 && await(ZYGOTE_PRELOADED, &answer, START_TIMEOUT_MS) &&
           answer.preloaded.ok;
}

void zygote_start(const struct interpreter *interpreter, const char *modules, size_t length)
{
    int sockets[2];
    union message message;
    stop();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets))
        die("no socket for the zygote");
    zygote = fork();
    if (zygote < 0)
        die("fork");
    if (zygote == 0)
        become_zygote(interpreter, sockets[1]);
    close(sockets[1]);
    control = sockets[0];
    if (await(ZYGOTE_READY, &message, START_TIMEOUT_MS) && length && !preload(modules, length, -1))
        stop(); /* it may have imported some of the modules, so it must not be used */
}

int zygote_preload(const char *modules, size_t length, int directory)
{
    return preload(modules, length, directory);
}

/* ---- processes for runs ------------------------------------------------------------------------------- */

pid_t zygote_fork(int init_pidfd, const int process[PROCESS_DESCRIPTORS], const struct confinement *confinement)
{
    struct fork_request request = {ZYGOTE_FORK, SANDBOX_NAMESPACES, *confinement};
    int descriptors[FORK_DESCRIPTORS];
    union message answer;
    if (!zygote)
        return 0;
    memcpy(descriptors, process, PROCESS_DESCRIPTORS * sizeof *process);
    descriptors[FORK_INIT] = init_pidfd;
    reported.pid = 0; /* forget the end of an earlier process: the new process may get its number */
    if (descriptors_send(control, &request, sizeof request, descriptors, FORK_DESCRIPTORS, 0) ||
        !await(ZYGOTE_FORKED, &answer, START_TIMEOUT_MS))
        return 0;
    reported.pid = 0;
    return answer.forked.pid > 0 ? answer.forked.pid : 0;
}

int zygote_take_exit(struct zygote_exit *end)
{
    union message message;
    while (!reported.pid && control >= 0) {
        ssize_t got = recv(control, &message, sizeof message, MSG_DONTWAIT);
        if (got < 0)
            break;
        if (got == 0)
            stop();
        else if (message.type == ZYGOTE_ENDED)
            note_end(&message.ended);
    }
    *end = reported;
    reported.pid = 0;
    return end->pid != 0;
}

void zygote_await_exit(pid_t pid, struct zygote_exit *end)
{
    union message message;
    while (reported.pid != pid && await(ZYGOTE_ENDED, &message, START_TIMEOUT_MS))
        note_end(&message.ended);
    if (reported.pid == pid) {
        *end = reported;
        reported.pid = 0;
        return;
    }
    /* The zygote has ended, so its children are now children of the supervisor. */
    int status = SIGKILL;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *end = (struct zygote_exit){.pid = pid, .status = status};
}
