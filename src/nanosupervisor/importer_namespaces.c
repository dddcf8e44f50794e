/* See importer_namespaces.h. */
#define _GNU_SOURCE
#include "importer_namespaces.h"
#include "confine.h"
#include "descriptors.h"
#include "namespaces.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define INNER_NAMESPACES (SANDBOX_NAMESPACES & ~CLONE_NEWUSER)

static const struct importer_namespaces none = {-1, -1, -1};
static const struct init_creation no_creation = {-1, -1};

static int open_namespace(pid_t process, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/%s", process, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* Create a user namespace inside that of the caller, enter it, and return a descriptor of it; -1 with errno. */
static int enter_new_user_namespace(void)
{
    if (unshare(CLONE_NEWUSER) || namespaces_map_user(RUN_USER, RUN_USER))
        return -1;
    return open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
}

/* In a separate process, which the importer cannot see: create both user namespaces and send them. */
__attribute__((noreturn)) static void create(int importer, int answer)
{
    int made[2];
    const char byte = 0;
    if (setns(importer, CLONE_NEWUSER) || (made[0] = enter_new_user_namespace()) < 0 ||
        (made[1] = enter_new_user_namespace()) < 0)
        _exit(errno & 0xff);
    _exit(descriptors_send(answer, &byte, 1, made, 2, 0) ? errno & 0xff : 0);
}

/* Receive the descriptors from the process that creates the namespaces, and reap it. */
static int receive_created(struct importer_namespaces *namespaces, pid_t creator, int answer)
{
    int made[2], status = 0;
    size_t count = 0;
    char byte;
    ssize_t got = descriptors_receive(answer, &byte, 1, made, 2, &count, 0);
    while (waitpid(creator, &status, 0) < 0 && errno == EINTR)
        ;
    if (got == 1 && count == 2) {
        namespaces->owner = made[0];
        namespaces->runs = made[1];
        return 0;
    }
    errno = WIFEXITED(status) ? WEXITSTATUS(status) : ECHILD;
    return -1;
}

static int create_user_namespaces(struct importer_namespaces *namespaces, int importer)
{
    int answer[2], failed;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, answer))
        return -1;
    pid_t creator = fork();
    if (creator == 0) {
        close(answer[0]);
        create(importer, answer[1]);
    }
    close(answer[1]);
    failed = creator < 0 ? -1 : receive_created(namespaces, creator, answer[0]);
    close(answer[0]);
    return failed;
}

int importer_namespaces_open(struct importer_namespaces *namespaces, pid_t init)
{
    int importer = open_namespace(init, "user"), failed;
    *namespaces = none;
    namespaces->process = open_namespace(init, "pid");
    failed = importer < 0 || namespaces->process < 0 || create_user_namespaces(namespaces, importer);
    int reason = errno;
    if (importer >= 0)
        close(importer);
    if (failed)
        importer_namespaces_close(namespaces);
    errno = reason;
    return failed ? -1 : 0;
}

void importer_namespaces_close(struct importer_namespaces *namespaces)
{
    const int descriptors[] = {namespaces->process, namespaces->owner, namespaces->runs};
    for (size_t i = 0; i < sizeof descriptors / sizeof *descriptors; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
    *namespaces = none;
}

struct request {
    const struct importer_namespaces *namespaces;
    const struct init_work *work;
    int answer;   /* the helper's end of a socket pair */
    pid_t helper; /* the inner helper, or a negative errno */
};

/* In the inner helper. It is in the importer's process namespace, so the importer could kill it. Therefore it shares no
 * memory with the supervisor. CLONE_PARENT makes init a child of the supervisor. */
__attribute__((noreturn)) static void clone_init(const struct request *request)
{
    int pidfd = -1;
    long init = syscall(SYS_clone, (unsigned long)(INNER_NAMESPACES | CLONE_PIDFD | CLONE_PARENT), NULL, &pidfd, NULL, 0);
    if (init == 0)
        request->work->run(request->work->argument);
    int failure = init < 0 ? errno : 0;
    _exit(descriptors_send(request->answer, &failure, sizeof failure, &pidfd, failure ? 0 : 1, 0) < 0);
}

static int compare(const void *left, const void *right)
{
    return *(const int *)left - *(const int *)right;
}

/* Close all descriptors but those that init needs. The importer can stop the inner helper and init. If these had the
 * descriptors of the supervisor, no run would see the end of its input until then. */
static void close_others(const struct request *request)
{
    int kept[MOST_KEPT + 1], next = 0;
    size_t count = request->work->kept_count;
    memcpy(kept, request->work->kept, count * sizeof *kept);
    kept[count++] = request->answer;
    qsort(kept, count, sizeof *kept, compare);
    for (size_t i = 0; i < count; i++) {
        if (kept[i] > next)
            close_range((unsigned)next, (unsigned)kept[i] - 1, 0);
        next = kept[i] + 1;
    }
    close_range((unsigned)next, ~0u, 0);
}

/* In the outer helper, which shares the supervisor's memory while the supervisor waits. Only a process that is in a
 * process namespace already can create another one inside it, so the outer helper forks an inner one. The importer does
 * not see the outer one. */
static int fork_inner_helper(void *argument)
{
    struct request *request = argument;
    const struct importer_namespaces *namespaces = request->namespaces;
    if (setns(namespaces->process, CLONE_NEWPID) || setns(namespaces->owner, CLONE_NEWUSER)) {
        request->helper = -errno;
        return 0;
    }
    close_others(request);
    long helper = syscall(SYS_clone, (unsigned long)CLONE_PARENT, NULL, NULL, NULL, 0);
    if (helper == 0)
        clone_init(request);
    request->helper = helper < 0 ? -errno : (pid_t)helper;
    return 0;
}

/* Start both helpers. Return a pidfd of the inner one, or -1 with errno. */
static int start_helpers(struct request *request)
{
    static char stack[64 * 1024] __attribute__((aligned(16)));
    pid_t outer = clone(fork_inner_helper, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, request);
    if (outer < 0)
        return -1;
    while (waitpid(outer, NULL, 0) < 0 && errno == EINTR)
        ;
    if (request->helper > 0) /* a child of the supervisor, which has not been reaped */
        return (int)syscall(SYS_pidfd_open, request->helper, 0);
    errno = -request->helper;
    return -1;
}

int importer_namespaces_begin_clone(const struct importer_namespaces *namespaces, struct init_creation *creation,
                                    const struct init_work *work)
{
    int answer[2];
    *creation = no_creation;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, answer))
        return -1;
    struct request request = {namespaces, work, answer[1], -ECHILD};
    int helper = start_helpers(&request), reason = errno;
    close(answer[1]);
    if (helper >= 0) {
        *creation = (struct init_creation){helper, answer[0]};
        return 0;
    }
    close(answer[0]);
    errno = reason;
    return -1;
}

/* Return the number in the container of the process of a pidfd. proc_pid_fdinfo(5) */
static pid_t number_of(int pidfd)
{
    char path[64], text[512], *at;
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file >= 0 ? read(file, text, sizeof text - 1) : -1;
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
    at = strstr(text, "\nPid:");
    return at ? (pid_t)strtol(at + 5, NULL, 10) : -1;
}

/* Receive the helper's answer, if it has arrived. Return as importer_namespaces_take_init(). */
static pid_t receive_init(int answer, int *pidfd)
{
    int failure = 0;
    size_t count = 0;
    ssize_t got = descriptors_receive(answer, &failure, sizeof failure, pidfd, 1, &count, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return 0;
    pid_t init = count ? number_of(*pidfd) : -1;
    if (init > 0)
        return init;
    if (count)
        close(*pidfd);
    errno = got == sizeof failure && failure ? failure : ECHILD;
    return -1;
}

/* Kill and reap the helper, which has answered or is not needed. It may be stopped. */
static void end_creation(struct init_creation *creation)
{
    siginfo_t info;
    syscall(SYS_pidfd_send_signal, creation->helper, SIGKILL, NULL, 0);
    while (waitid(P_PIDFD, (id_t)creation->helper, &info, WEXITED) && errno == EINTR)
        ; /* ECHILD: a wait for another process has reaped it */
    close(creation->helper);
    close(creation->answer);
    *creation = no_creation;
}

pid_t importer_namespaces_take_init(struct init_creation *creation, int *pidfd)
{
    pid_t init = receive_init(creation->answer, pidfd);
    int reason = errno;
    if (init)
        end_creation(creation);
    errno = reason;
    return init;
}

pid_t importer_namespaces_cancel_clone(struct init_creation *creation, int *pidfd)
{
    if (creation->helper < 0)
        return 0;
    pid_t init = receive_init(creation->answer, pidfd);
    end_creation(creation);
    return init > 0 ? init : 0;
}
