/* See zygote.h. Messages are described in zygote_module.c. */
#define _GNU_SOURCE
#include "zygote.h"
#include "sandbox.h"
#include "wire.h"

#include <dirent.h>
#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3
#define FOLDER "/nanosupervisor/zygote" /* has a main.py, so that /proc/self/cmdline is that of a plain start */
#define START_TIMEOUT_MS 30000
#define MAX_MESSAGE (64 * 1024) /* names of modules and of files */

static pid_t zygote;
static int control = -1;
static struct zygote_exit reported; /* an end that came while something else was waited for */

struct __attribute__((packed)) message {
    char type;
    union {
        int32_t pid;
        uint8_t ok;
        struct __attribute__((packed)) {
            int32_t pid, status;
            uint64_t user_us, system_us;
        } end;
    };
};

/* What it takes to move a child into a sandbox: setns(2) of each namespace, by a process that may look at its
 * init. They are valid in the container's own user namespace and nowhere else. */
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

__attribute__((noreturn)) static void become_zygote(const struct interpreter *interpreter, int end)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    if (chdir(FOLDER) || dup2(end, CONTROL) < 0 || close_range(CONTROL + 1, ~0u, 0) || keep_capabilities())
        _exit(126);
    execve(interpreter->words[0], interpreter->words, interpreter_environment);
    _exit(127);
}

int zygote_runs(void)
{
    return zygote > 0;
}

int zygote_fd(void)
{
    return control;
}

void zygote_note_reaped(pid_t pid)
{
    if (pid <= 0 || pid != zygote)
        return;
    close(control);
    zygote = 0;
    control = -1;
    reported.pid = 0;
}

void zygote_stop(void)
{
    if (!zygote)
        return;
    kill(zygote, SIGKILL);
    while (waitpid(zygote, NULL, 0) < 0 && errno == EINTR)
        ;
    close(control);
    zygote = 0;
    control = -1;
    reported.pid = 0;
}

/* The next message, or 0 when the zygote has failed: it is then gone. */
static int receive(struct message *message, int timeout_ms)
{
    struct pollfd event = {control, POLLIN, 0};
    int ready;
    if (!zygote)
        return 0;
    while ((ready = poll(&event, 1, timeout_ms)) < 0 && errno == EINTR)
        ;
    if (ready > 0 && recv(control, message, sizeof *message, 0) > 0)
        return 1;
    zygote_stop();
    return 0;
}

static void note(const struct message *message)
{
    reported = (struct zygote_exit){message->end.pid, message->end.status, message->end.user_us, message->end.system_us};
}

/* Wait for an answer of that type; an end that is told meanwhile is kept. */
static int await(char type, struct message *message, int timeout_ms)
{
    while (receive(message, timeout_ms)) {
        if (message->type == type)
            return 1;
        if (message->type == 'X')
            note(message);
    }
    return 0;
}

/* Append a name; 0 when there is no room. */
static int append(char *message, size_t *length, const char *name)
{
    size_t size = strlen(name) + 1;
    if (size > MAX_MESSAGE - *length)
        return 0;
    memcpy(message + *length, name, size);
    *length += size;
    return 1;
}

/* A folder of -1 has no entries. */
static int preload(const char *modules, size_t length, int folder)
{
    static char request[MAX_MESSAGE];
    struct message answer;
    size_t used = 0;
    request[used++] = 'P';
    for (const char *at = modules; at < modules + length; at += strlen(at) + 1)
        if (!append(request, &used, at))
            return 1; /* too many names; a run imports what it needs */
    append(request, &used, "");
    DIR *entries = folder < 0 ? NULL : fdopendir(dup(folder));
    struct dirent *entry;
    int fits = folder < 0 || entries;
    if (entries)
        rewinddir(entries);
    while (entries && fits && (entry = readdir(entries)))
        if (entry->d_name[0] != '.')
            fits = append(request, &used, entry->d_name);
    if (entries)
        closedir(entries);
    if (!fits)
        return 1;
    return send(control, request, used, MSG_NOSIGNAL) > 0 && await('p', &answer, START_TIMEOUT_MS) && answer.ok;
}

int zygote_start(const struct interpreter *interpreter, const char *modules, size_t length)
{
    int ends[2];
    struct message message;
    zygote_stop();
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        die("no socket for the zygote");
    zygote = fork();
    if (zygote < 0)
        die("fork");
    if (zygote == 0)
        become_zygote(interpreter, ends[1]);
    close(ends[1]);
    control = ends[0];
    if (!await('R', &message, START_TIMEOUT_MS))
        return 0;
    if (length && !preload(modules, length, -1)) {
        zygote_stop(); /* it may have imported some of them, and cannot be used */
        return 0;
    }
    return 1;
}

int zygote_preload(const char *modules, size_t length, int folder)
{
    return preload(modules, length, folder);
}

pid_t zygote_fork(int init, const int ends[PARKED_END_COUNT], const struct confinement *confinement)
{
    struct __attribute__((packed)) {
        char type;
        uint32_t namespaces;
        struct confinement confinement;
    } request = {'F', sandbox_namespaces, *confinement};
    int descriptors[PARKED_END_COUNT + 1];
    memcpy(descriptors, ends, PARKED_END_COUNT * sizeof *ends);
    descriptors[PARKED_END_COUNT] = init;
    char room[CMSG_SPACE(sizeof descriptors)] = {0};
    struct iovec part = {&request, sizeof request};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    struct message answer;
    if (!zygote)
        return 0;
    reported.pid = 0; /* of a process that is no more; its number may come again */
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof descriptors);
    memcpy(CMSG_DATA(header), descriptors, sizeof descriptors);
    if (sendmsg(control, &message, MSG_NOSIGNAL) < 0 || !await('f', &answer, START_TIMEOUT_MS))
        return 0;
    reported.pid = 0;
    return answer.pid > 0 ? answer.pid : 0;
}

int zygote_has_reported(struct zygote_exit *end)
{
    struct message message;
    while (!reported.pid && control >= 0) {
        ssize_t got = recv(control, &message, sizeof message, MSG_DONTWAIT);
        if (got < 0)
            break;
        if (got == 0)
            zygote_stop();
        else if (message.type == 'X')
            note(&message);
    }
    if (!reported.pid)
        return 0;
    *end = reported;
    reported.pid = 0;
    return 1;
}

void zygote_await_exit(pid_t pid, struct zygote_exit *end)
{
    struct message message;
    if (reported.pid == pid) {
        *end = reported;
        reported.pid = 0;
        return;
    }
    while (await('X', &message, START_TIMEOUT_MS)) {
        note(&message);
        *end = reported;
        reported.pid = 0;
        if (end->pid == pid)
            return;
    }
    /* The zygote is gone; its children are ours. */
    int status = SIGKILL;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    *end = (struct zygote_exit){.pid = pid, .status = status};
}
