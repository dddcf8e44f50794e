/* The Python module `_nanozygote`, with which zygote.py serves the supervisor. The messages are described in
 * zygote_protocol.h.
 *
 * For a run, the zygote only forks. It runs no Python code, except the hooks of os.register_at_fork(). A forked
 * process runs no Python before it is confined. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "confine.h"
#include "descriptors.h"
#include "job.h"
#include "zygote_config.h"
#include "zygote_imports.h"
#include "zygote_program.h"
#include "zygote_protocol.h"

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
#define SETUP_FAILED 125 /* exit status of a forked process that could not enter its sandbox or confine itself */

struct request {
    char bytes[MAX_ZYGOTE_MESSAGE + 1];
    size_t length;
    int descriptors[FORK_DESCRIPTORS];
    size_t descriptor_count;
};

static int child_ended = -1; /* signalfd: SIGCHLD, which is blocked */
static int own_pid_namespace = -1;

/* --- a process for a run */

__attribute__((noreturn)) static void fail(const char *step)
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

/* The received descriptors have higher numbers than their targets here, because set_up() has filled the low
 * numbers. */
static void take_descriptors(const int *descriptors)
{
    if (dup2(descriptors[PROCESS_IN], STDIN_FILENO) < 0 || dup2(descriptors[PROCESS_OUT], STDOUT_FILENO) < 0 ||
        dup2(descriptors[PROCESS_ERR], STDERR_FILENO) < 0 || dup2(descriptors[PROCESS_JOB], JOB_SOCKET) < 0)
        fail("take its descriptors");
    if (close_range(JOB_SOCKET + 1, ~0u, 0))
        fail("close the zygote's descriptors");
}

static void enter_sandbox(const struct fork_request *request, const int *descriptors)
{
    uint32_t namespaces = request->namespaces & ~(uint32_t)CLONE_NEWPID; /* the fork has entered this one */
    if (namespaces && setns(descriptors[FORK_INIT], (int)namespaces))
        fail("enter its namespaces");
    take_descriptors(descriptors);
    unblock_signals();
    if (chdir("/"))
        fail("chdir to its root");
    if (confine(&request->confinement, JOB_SOCKET))
        fail("confine");
}

/* Fork a process into a sandbox. Return its number or a negative errno; in the process itself, 0. */
static int32_t fork_process(const struct fork_request *wanted, const struct request *request)
{
    int enters = wanted->namespaces != 0;
    pid_t pid;
    if (request->descriptor_count != (enters ? FORK_DESCRIPTORS : FORK_DESCRIPTORS - 1))
        return -EINVAL;
    if (enters && setns(request->descriptors[FORK_INIT], CLONE_NEWPID))
        return -errno;
    PyOS_BeforeFork();
    pid = fork();
    if (pid == 0) {
        enter_sandbox(wanted, request->descriptors);
        PyOS_AfterFork_Child();
        return 0;
    }
    int failure = errno;
    PyOS_AfterFork_Parent();
    /* Release the sandbox's process namespace. In most set-ups this fails, because the zygote has no rights
     * over the container's process namespace. Then the next fork releases it. */
    if (enters)
        (void)!setns(own_pid_namespace, CLONE_NEWPID);
    return pid > 0 ? pid : -failure;
}

/* --- messages */

static void answer(const void *message, size_t size)
{
    if (send(CONTROL, message, size, MSG_NOSIGNAL) < 0)
        _exit(0); /* the supervisor has ended, and the container with it */
}

static void receive(struct request *request)
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
        answer(&ended, sizeof ended);
    }
}

/* Serve one ZYGOTE_FORK. Return 1 in the zygote, 0 in the new process. */
static int serve_fork(const struct request *request)
{
    struct fork_request wanted;
    struct forked forked = {ZYGOTE_FORKED, -EINVAL};
    if (request->length == sizeof wanted) {
        memcpy(&wanted, request->bytes, sizeof wanted);
        forked.pid = fork_process(&wanted, request);
        if (forked.pid == 0)
            return 0;
    }
    for (size_t i = 0; i < request->descriptor_count; i++)
        close(request->descriptors[i]);
    answer(&forked, sizeof forked);
    return 1;
}

/* Serve all ZYGOTE_FORK messages here, because Python would take time. Return 1 when a ZYGOTE_PRELOAD has
 * arrived, 0 in a new process. */
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
        if (request->bytes[0] == ZYGOTE_PRELOAD)
            return 1;
        if (request->bytes[0] == ZYGOTE_FORK && !serve_fork(request))
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

/* Make OpenSSL take its random numbers from the kernel. Normally OpenSSL detects a fork by a new process number.
 * But the number is the same in each sandbox, and may be the zygote's number. So two runs would get the same
 * random numbers. To seed OpenSSL again would take 1 ms for each run; the kernel's numbers need no seed. If no
 * module has loaded OpenSSL, this does nothing. */
static void take_openssl_numbers_from_kernel(void)
{
    static const struct random_method kernel = {random_seed, random_bytes, NULL,
                                                random_add,  random_bytes, random_status};
    static int done;
    void *library = done ? NULL : dlopen("libcrypto.so.3", RTLD_NOLOAD | RTLD_LAZY);
    int (*set_method)(const struct random_method *) = library ? dlsym(library, "RAND_set_rand_method") : NULL;
    if (set_method)
        done = set_method(&kernel);
}

/* --- the module */

static void set_up(void)
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

/* Return the names of a ZYGOTE_PRELOAD message: (modules, entries of the code's directory). */
static PyObject *names_of(struct request *request)
{
    PyObject *modules = PyList_New(0), *entries = PyList_New(0), *list = modules;
    const char *end = request->bytes + request->length;
    request->bytes[request->length] = '\0';
    for (const char *at = request->bytes + 1; modules && entries && at < end; at += strlen(at) + 1) {
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
    take_openssl_numbers_from_kernel();
    if (program_freeze())
        return NULL;
    answer(first, (size_t)length);
    if (serve_forks(&request))
        return names_of(&request);
    if (program_note_start())
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

/* Python ignores these two signals. A program that is executed next must not inherit that. */
static PyObject *module_restore_signals(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"serve", module_serve, METH_VARARGS,
     "serve(message) -> None | (modules, entries)\n\nSend the message and serve the supervisor. Return None in a "
     "new process, which is confined and has the job socket as descriptor 3. In the zygote itself return the modules "
     "to import and the names in the code's directory. End the process when the supervisor has ended."},
    {"hook", imports_hook, METH_VARARGS,
     "hook(waiting, hand_out)\n\nMake the import of a name in the dict `waiting` call hand_out(name) first."},
    {"hold", imports_hold, METH_O, "hold(object)\n\nKeep the object alive and stop counting its references."},
    {"watch", imports_watch, METH_VARARGS,
     "watch(module, changed, freely_set)\n\nWhen a name is set in the module, put the module's name into the dict "
     "`changed`. Ignore the names in the set freely_set[module's name]."},
    {"run", module_run, METH_O, "run(path)\n\nRun a program as `python3 path` would, and exit as it would."},
    {"restore_signals", module_restore_signals, METH_NOARGS,
     "Reset the signals that Python ignores, before an execve."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_nanozygote", .m_doc = "See zygote.py.", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit__nanozygote(void)
{
    if (program_import_modules() || config_set_program(L"/work", L"/work/main.py"))
        return NULL;
    return PyModule_Create(&definition);
}
