/* The zygote's own side of its talk with the supervisor, as a Python module: `_nanozygote`, used by zygote.py.
 *
 * Messages on the control socket (SOCK_SEQPACKET, descriptor 3), packed, little-endian:
 *   supervisor → zygote
 *     'F' u32 namespaces, struct confinement; descriptors: job, stdin, stdout, stderr, pidfd of the sandbox's
 *         init (none when `namespaces` is 0)            fork a process into that sandbox
 *     'P' modules, "", names in the code's folder; each NUL-terminated       import more
 *   zygote → supervisor
 *     'R'                                          up
 *     'f' i32 pid or -errno                        forked
 *     'p' u8                                       1: imported; 0: not, and this zygote is of no more use
 *     'X' i32 pid, i32 wait status, u64 user µs, u64 system µs              a process has ended
 *
 * A run costs the zygote one fork and no line of Python but the hooks of os.register_at_fork(). What the child
 * is before it is confined, the supervisor's code is, too: no Python runs in between. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "confine.h"
#include "zygote_config.h"
#include "zygote_imports.h"
#include "zygote_program.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONTROL 3
#define JOB 3 /* in a child */
#define MAX_MESSAGE (64 * 1024)
#define FAILED 125 /* exit status of a child that could not become one */

enum { END_JOB, END_STDIN, END_STDOUT, END_STDERR, END_INIT, END_COUNT };

struct __attribute__((packed)) fork_request {
    char type;
    uint32_t namespaces;
    struct confinement confinement;
};

struct request {
    char bytes[MAX_MESSAGE + 1];
    size_t length;
    int ends[END_COUNT], end_count;
};

static int child_ended = -1; /* a signalfd: SIGCHLD is blocked */
static int own_pid_namespace = -1;

/* --- a process for a run */

__attribute__((noreturn)) static void fail(const char *what)
{
    dprintf(STDERR_FILENO, "nanosupervisor: a process for the run could not be made: %s: %s\n", what, strerror(errno));
    _exit(FAILED);
}

/* Handlers stay: they are Python's, as in any interpreter. */
static void unblock_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Descriptors of a message are above those that are taken here. */
static void take_ends(const int *ends)
{
    if (dup2(ends[END_STDIN], STDIN_FILENO) < 0 || dup2(ends[END_STDOUT], STDOUT_FILENO) < 0 ||
        dup2(ends[END_STDERR], STDERR_FILENO) < 0 || dup2(ends[END_JOB], JOB) < 0)
        fail("its descriptors");
    if (close_range(JOB + 1, ~0u, 0))
        fail("the zygote's descriptors");
}

static void become_run(const struct fork_request *request, const int *ends)
{
    uint32_t namespaces = request->namespaces & ~(uint32_t)CLONE_NEWPID; /* of that it is a member by birth */
    if (namespaces && setns(ends[END_INIT], (int)namespaces))
        fail("its namespaces");
    take_ends(ends);
    unblock_signals();
    if (chdir("/"))
        fail("its root");
    if (confine(&request->confinement, JOB))
        fail("its confinement");
}

/* The process, its negative errno, or 0 in the process itself. */
static int32_t fork_run(const struct fork_request *request, const struct request *message)
{
    int enters = request->namespaces != 0;
    pid_t pid;
    if (message->end_count != (enters ? END_COUNT : END_COUNT - 1))
        return -EINVAL;
    if (enters && setns(message->ends[END_INIT], CLONE_NEWPID))
        return -errno;
    PyOS_BeforeFork();
    pid = fork();
    if (pid == 0) {
        become_run(request, message->ends);
        PyOS_AfterFork_Child();
        return 0;
    }
    int failure = errno;
    PyOS_AfterFork_Parent();
    /* Not to hold on to the sandbox's. It is the container's, over which the zygote has no rights in most
     * set-ups; then the next fork replaces it. */
    if (enters)
        (void)!setns(own_pid_namespace, CLONE_NEWPID);
    return pid > 0 ? pid : -failure;
}

/* --- talking */

static void answer(const void *message, size_t size)
{
    if (send(CONTROL, message, size, MSG_NOSIGNAL) < 0)
        _exit(0); /* the supervisor is gone, and the container with it */
}

static void take_descriptors(struct request *request, struct msghdr *message)
{
    request->end_count = 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        request->end_count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(request->ends, CMSG_DATA(header), (size_t)request->end_count * sizeof(int));
    }
}

static void receive(struct request *request)
{
    char room[CMSG_SPACE(sizeof request->ends)];
    struct iovec part = {request->bytes, MAX_MESSAGE};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t got;
    while ((got = recvmsg(CONTROL, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        ;
    if (got <= 0)
        _exit(0);
    request->length = (size_t)got;
    take_descriptors(request, &message);
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
        struct __attribute__((packed)) {
            char type;
            int32_t pid, status;
            uint64_t user_us, system_us;
        } end = {'X', pid, status, microseconds(use.ru_utime), microseconds(use.ru_stime)};
        answer(&end, sizeof end);
    }
}

/* 1 in the zygote, 0 in the new process. */
static int serve_fork(const struct request *request)
{
    struct fork_request wanted;
    struct __attribute__((packed)) {
        char type;
        int32_t pid;
    } forked = {'f', -EINVAL};
    if (request->length == sizeof wanted) {
        memcpy(&wanted, request->bytes, sizeof wanted);
        forked.pid = fork_run(&wanted, request);
        if (forked.pid == 0)
            return 0;
    }
    for (int i = 0; i < request->end_count; i++)
        close(request->ends[i]);
    answer(&forked, sizeof forked);
    return 1;
}

/* 'F's are served here, for Python would only be in the way. 1 when a 'P' came, 0 in a new process. */
static int serve_forks(struct request *request)
{
    struct pollfd events[] = {{CONTROL, POLLIN, 0}, {child_ended, POLLIN, 0}};
    for (;;) {
        if (poll(events, 2, -1) < 0)
            continue;
        if (events[1].revents)
            report_ended();
        if (!events[0].revents)
            continue;
        receive(request);
        if (request->bytes[0] == 'P')
            return 1;
        if (request->bytes[0] == 'F' && !serve_fork(request))
            return 0;
    }
}

/* --- random numbers */

/* RAND_METHOD of openssl/rand.h, the same since OpenSSL 1.0. */
struct random_method {
    int (*seed)(const void *, int);
    int (*bytes)(unsigned char *, int);
    void (*cleanup)(void);
    int (*add)(const void *, int, double);
    int (*pseudo_bytes)(unsigned char *, int);
    int (*status)(void);
};

static int random_seed(const void *Py_UNUSED(seed), int Py_UNUSED(count))
{
    return 1;
}

static int random_add(const void *Py_UNUSED(seed), int Py_UNUSED(count), double Py_UNUSED(entropy))
{
    return 1;
}

static int random_bytes(unsigned char *bytes, int count)
{
    for (int got = 0; got < count;) {
        ssize_t more = getrandom(bytes + got, (size_t)(count - got), 0);
        if (more < 0 && errno != EINTR)
            return 0;
        got += more > 0 ? (int)more : 0;
    }
    return 1;
}

static int random_status(void)
{
    return 1;
}

/* OpenSSL knows a fork by its process number, which is the same in each sandbox, and may be the zygote's: two
 * runs would draw the same numbers. Reseeding takes 1 ms for each run; without a state there is nothing to
 * reseed. Nothing to do where no module has loaded it. */
static void have_openssl_ask_the_kernel(void)
{
    static const struct random_method kernel = {random_seed, random_bytes, NULL, random_add, random_bytes, random_status};
    static int done;
    void *library = done ? NULL : dlopen("libcrypto.so.3", RTLD_NOLOAD | RTLD_LAZY);
    int (*set_method)(const struct random_method *) = library ? dlsym(library, "RAND_set_rand_method") : NULL;
    if (set_method)
        done = set_method(&kernel);
}

/* --- the module */

static void set_up(void)
{
    sigset_t ends;
    int filler;
    while ((filler = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && filler <= CONTROL)
        ; /* 0 to 2 are taken in the children, so they may not be anything else's here */
    close(filler);
    own_pid_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
    fcntl(CONTROL, F_SETFD, FD_CLOEXEC);
    sigemptyset(&ends);
    sigaddset(&ends, SIGCHLD);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    child_ended = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
    /* A run has the same user id: it may not look into this process, nor a parked one. */
    prctl(PR_SET_DUMPABLE, 0);
}

/* The names of a 'P' request: (modules, entries of the code's folder). */
static PyObject *names_of(struct request *request)
{
    PyObject *modules = PyList_New(0), *entries = PyList_New(0), *list = modules;
    request->bytes[request->length] = '\0';
    for (char *at = request->bytes + 1; modules && entries && at < request->bytes + request->length; at += strlen(at) + 1) {
        PyObject *name = *at ? PyUnicode_DecodeFSDefault(at) : NULL;
        if (!*at)
            list = entries;
        else if (!name || PyList_Append(list, name))
            return NULL;
        Py_XDECREF(name);
    }
    return Py_BuildValue("NN", modules, entries);
}

static PyObject *module_serve(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    static struct request request;
    const char *first;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "y#", &first, &length))
        return NULL;
    if (child_ended < 0)
        set_up();
    have_openssl_ask_the_kernel();
    if (program_freeze())
        return NULL;
    answer(first, (size_t)length);
    if (serve_forks(&request))
        return names_of(&request);
    if (program_prepare())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *module_run(PyObject *Py_UNUSED(module), PyObject *path)
{
    PyObject *bytes;
    if (!PyUnicode_FSConverter(path, &bytes))
        return NULL;
    program_run(strdup(PyBytes_AS_STRING(bytes)));
}

/* Python ignores two signals, which a program that is not Python must not inherit. */
static PyObject *module_restore_signals(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"serve", module_serve, METH_VARARGS,
     "serve(message) -> None | (modules, entries)\n\nSend the message and serve the supervisor. Returns None in a "
     "new process, which is confined and has the job's descriptor as 3; in the zygote itself, what it is to import, "
     "and what the code's folder has. Ends the process when the supervisor is gone."},
    {"hook", imports_hook, METH_VARARGS,
     "hook(waiting, hand_out)\n\nHave the import of a name in the dict `waiting` first ask hand_out(name)."},
    {"hold", imports_hold, METH_O, "hold(object)\n\nCount its references no more; it lives on."},
    {"watch", imports_watch, METH_VARARGS,
     "watch(module, changed, freely_set)\n\nPut the module's name into `changed` when a name is set in it that is not in "
     "freely_set[module's name]."},
    {"run", module_run, METH_O, "run(path)\n\nRun a program as `python3 path` would; does not return."},
    {"restore_signals", module_restore_signals, METH_NOARGS, "Undo what Python has changed, before an execve."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_nanozygote", .m_doc = "See zygote.py.", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__nanozygote(void)
{
    if (program_keep_modules() || config_set_program(L"/work", L"/work/main.py"))
        return NULL;
    return PyModule_Create(&definition);
}
