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

/* At most so many forked processes exist at a time: those of the run, of the sandboxes that wait, and of one that is
 * discarded. */
enum { MAX_PROCESSES = 8 };
static struct zygote_exit ends[MAX_PROCESSES];    /* reported and not yet taken; pid 0: free */
static unsigned forks_requested, forks_answered;  /* answers arrive in the order of the requests */
static pid_t forked_pids[MAX_PROCESSES];          /* the latest answers: that to ticket n is at n % MAX_PROCESSES */

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

/* The zygote has ended. It answers no requests any more, and its children are now children of the supervisor. */
static void forget(void)
{
    close(control);
    zygote = 0;
    control = -1;
    memset(forked_pids, 0, sizeof forked_pids);
    forks_answered = forks_requested;
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

/* Return the reported end of this process; NULL if there is none. Pid 0: return a free entry. */
static struct zygote_exit *end_of(pid_t pid)
{
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (ends[i].pid == pid)
            return &ends[i];
    return NULL;
}

static void note_end(const struct ended *ended)
{
    struct zygote_exit *entry = end_of(0);
    if (!entry)
        die("the zygote has reported too many ends");
    *entry = (struct zygote_exit){ended->pid, ended->status, ended->user_us, ended->system_us};
}

/* Note the answer to the oldest request. The end of an earlier process with the same number was reported before,
 * and nobody has taken it: forget it. */
static void note_fork(const struct forked *forked)
{
    struct zygote_exit *stale = forked->pid > 0 ? end_of(forked->pid) : NULL;
    if (stale)
        stale->pid = 0;
    forked_pids[++forks_answered % MAX_PROCESSES] = forked->pid > 0 ? forked->pid : 0;
}

static void note(const union message *message)
{
    if (message->type == ZYGOTE_ENDED)
        note_end(&message->ended);
    else if (message->type == ZYGOTE_FORKED)
        note_fork(&message->forked);
}

/* Receive the next message and note its content. If that fails, stop the zygote and return 0. */
static int receive(union message *message, int timeout_ms)
{
    struct pollfd event = {control, POLLIN, 0};
    int ready;
    if (!zygote)
        return 0;
    while ((ready = poll(&event, 1, timeout_ms)) < 0 && errno == EINTR)
        ;
    if (ready <= 0 || recv(control, message, sizeof *message, 0) <= 0) {
        stop();
        return 0;
    }
    note(message);
    return 1;
}

/* Wait for one type of message. Return 0 if the zygote has failed. */
static int await(enum zygote_message type, union message *message, int timeout_ms)
{
    while (receive(message, timeout_ms))
        if (message->type == (char)type)
            return 1;
    return 0;
}

void zygote_receive(void)
{
    union message message;
    ssize_t got = -1;
    while (zygote && (got = recv(control, &message, sizeof message, MSG_DONTWAIT)) > 0)
        note(&message);
    if (zygote && (got == 0 || errno != EAGAIN))
        stop();
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
    memset(ends, 0, sizeof ends);
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

unsigned zygote_request_fork(int init_pidfd, const int process[PROCESS_DESCRIPTORS],
                             const struct confinement *confinement)
{
    struct fork_request request = {ZYGOTE_FORK, SANDBOX_NAMESPACES, *confinement};
    int descriptors[FORK_DESCRIPTORS];
    memcpy(descriptors, process, PROCESS_DESCRIPTORS * sizeof *process);
    descriptors[FORK_INIT] = init_pidfd;
    forks_requested++;
    if (zygote && descriptors_send(control, &request, sizeof request, descriptors, FORK_DESCRIPTORS, 0))
        stop();
    if (!zygote) {
        forks_answered = forks_requested;
        forked_pids[forks_answered % MAX_PROCESSES] = 0;
    }
    return forks_requested;
}

int zygote_has_forked(unsigned ticket, pid_t *pid)
{
    if ((int)(forks_answered - ticket) < 0)
        return 0;
    *pid = forked_pids[ticket % MAX_PROCESSES];
    return 1;
}

pid_t zygote_await_fork(unsigned ticket)
{
    union message answer;
    pid_t pid;
    while (!zygote_has_forked(ticket, &pid))
        await(ZYGOTE_FORKED, &answer, START_TIMEOUT_MS); /* if it fails, every request is answered */
    return pid;
}

int zygote_take_exit(pid_t pid, struct zygote_exit *end)
{
    struct zygote_exit *reported = pid ? end_of(pid) : NULL;
    if (!reported)
        return 0;
    *end = *reported;
    reported->pid = 0;
    return 1;
}

void zygote_await_exit(pid_t pid, struct zygote_exit *end)
{
    union message message;
    int status = SIGKILL;
    while (!end_of(pid) && await(ZYGOTE_ENDED, &message, START_TIMEOUT_MS))
        ;
    if (zygote_take_exit(pid, end))
        return;
    /* The zygote has ended, so its children are now children of the supervisor. */
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *end = (struct zygote_exit){.pid = pid, .status = status};
}
