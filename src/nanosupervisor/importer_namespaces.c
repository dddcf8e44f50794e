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

struct creation {
    const struct importer_namespaces *namespaces;
    void (*run)(void *argument);
    void *argument;
    int answer;   /* a pipe, to which the inner helper writes the pidfd */
    pid_t helper; /* the inner helper, or a negative errno */
};

/* In the inner helper. It is in the importer's process namespace, so the importer could kill it. Therefore it shares no
 * memory with the supervisor. CLONE_PARENT makes init a child of the supervisor, and the shared table of descriptors
 * gives the supervisor the pidfd. */
__attribute__((noreturn)) static void clone_init(const struct creation *creation)
{
    int made[2] = {-1, 0}; /* pidfd, errno */
    long init = syscall(SYS_clone, (unsigned long)(INNER_NAMESPACES | CLONE_PIDFD | CLONE_PARENT), NULL, &made[0], NULL, 0);
    if (init == 0)
        creation->run(creation->argument);
    made[1] = init < 0 ? errno : 0;
    _exit(write(creation->answer, made, sizeof made) < 0);
}

/* In the outer helper, which shares the supervisor's memory and descriptors while the supervisor waits. Only a process
 * that is in a process namespace already can create another one inside it, so the outer helper forks an inner one. */
static int fork_inner_helper(void *argument)
{
    struct creation *creation = argument;
    const struct importer_namespaces *namespaces = creation->namespaces;
    if (setns(namespaces->process, CLONE_NEWPID) || setns(namespaces->owner, CLONE_NEWUSER)) {
        creation->helper = -errno;
        return 0;
    }
    long helper = syscall(SYS_clone, (unsigned long)(CLONE_FILES | CLONE_PARENT), NULL, NULL, NULL, 0);
    if (helper == 0)
        clone_init(creation);
    creation->helper = helper < 0 ? -errno : (pid_t)helper;
    return 0;
}

static void reap(pid_t pid)
{
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* Run both helpers. Return 0 and the pidfd, or an errno. */
static int run_helpers(struct creation *creation, int from, int *pidfd)
{
    static char stack[64 * 1024] __attribute__((aligned(16)));
    int made[2] = {-1, ECHILD};
    pid_t outer = clone(fork_inner_helper, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, creation);
    int failure = errno;
    if (outer < 0)
        return failure;
    reap(outer);
    if (creation->helper < 0)
        return -creation->helper;
    reap(creation->helper); /* then it has written the answer, or was killed */
    if (read(from, made, sizeof made) != sizeof made)
        return ECHILD;
    *pidfd = made[0];
    return made[1];
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

pid_t importer_namespaces_clone(const struct importer_namespaces *namespaces, int *pidfd, void (*run)(void *argument),
                                void *argument)
{
    int answer[2];
    if (pipe2(answer, O_CLOEXEC | O_NONBLOCK))
        return -1;
    struct creation creation = {namespaces, run, argument, answer[1], -ECHILD};
    int failure = run_helpers(&creation, answer[0], pidfd);
    close(answer[0]);
    close(answer[1]);
    pid_t init = failure ? -1 : number_of(*pidfd);
    if (init > 0)
        return init;
    errno = failure ? failure : ESRCH;
    return -1;
}
