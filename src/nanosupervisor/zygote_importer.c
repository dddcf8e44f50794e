/* See zygote_importer.h. */
#define _GNU_SOURCE
#include "zygote_importer.h"
#include "confine.h"
#include "zygote_program.h"
#include "zygote_server.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- threads */

static int is_importer; /* the zygote itself need not look */
static int is_alone;    /* at the last fork, the process had one thread */

/* Return the number of the process's threads; 0 if it is not known. */
static int count_threads(void)
{
    char entries[1024];
    int count = 0, tasks = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ssize_t length = 0;
    while (tasks >= 0 && (length = syscall(SYS_getdents64, tasks, entries, sizeof entries)) > 0)
        for (ssize_t at = 0; at < length;) {
            const struct dirent64 *entry = (const struct dirent64 *)(entries + at);
            count += entry->d_name[0] != '.';
            at += entry->d_reclen;
        }
    if (tasks >= 0)
        close(tasks);
    return length < 0 ? 0 : count;
}

static void note_threads(void)
{
    if (is_importer)
        is_alone = count_threads() == 1;
}

/* fork(2) calls the prepare handlers in the reverse order. So this one is called last, when libraries have joined
 * their threads, as OpenBLAS does. pthread_atfork(3) */
int importer_note_threads_at_fork(void)
{
    return pthread_atfork(note_threads, NULL, NULL);
}

static int wait_for(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return status;
}

PyObject *importer_is_alone(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    is_importer = 1;
    PyOS_BeforeFork();
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    PyOS_AfterFork_Parent();
    if (pid > 0)
        wait_for(pid);
    return PyBool_FromLong(pid > 0 && is_alone);
}

/* --- forks */

/* In the first forked process: enter the sandbox, and fork the run's process. Returns only there. A process namespace
 * takes effect for the next fork only. The first process ends, so the init of the importer's sandbox becomes the parent
 * of the run's process, which waits for that at the gate. */
static void fork_inside(const struct fork_request *wanted, const struct zygote_request *request, const int gate[2])
{
    char byte;
    if (!is_alone)
        _exit(EBUSY);
    if (wanted->namespaces && setns(request->descriptors[FORK_INIT], (int)wanted->namespaces))
        _exit(errno);
    pid_t pid = fork();
    if (pid)
        _exit(pid < 0 ? errno : 0);
    close(gate[1]);
    while (read(gate[0], &byte, 1) < 0 && errno == EINTR)
        ;
    zygote_become_run(request->descriptors);
    if (confine_fork())
        zygote_fail("confine");
}

/* Return 1 in the importer, with the answer; 0 in the run's process. */
static int fork_run(const struct fork_request *wanted, const struct zygote_request *request, struct forked *answer)
{
    size_t expected = wanted->namespaces ? FORK_DESCRIPTORS : FORK_DESCRIPTORS - 1;
    int gate[2];
    answer->pid = -EINVAL;
    if (request->descriptor_count != expected || pipe2(gate, O_CLOEXEC))
        return 1;
    PyOS_BeforeFork();
    pid_t pid = fork();
    if (pid == 0) {
        fork_inside(wanted, request, gate);
        PyOS_AfterFork_Child();
        return 0;
    }
    answer->pid = -errno;
    PyOS_AfterFork_Parent();
    close(gate[0]);
    if (pid > 0) {
        int status = wait_for(pid);
        answer->pid = WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
    }
    close(gate[1]);
    return 1;
}

static int serve_fork(const struct zygote_request *request)
{
    struct fork_request wanted;
    struct forked answer = {ZYGOTE_FORKED, -EINVAL};
    if (request->length == sizeof wanted) {
        memcpy(&wanted, request->bytes, sizeof wanted);
        if (!fork_run(&wanted, request, &answer))
            return 0;
    }
    /* First the answer: it has the reason if the job socket is closed because no process was forked. */
    zygote_answer(&answer, sizeof answer);
    for (size_t i = 0; i < request->descriptor_count; i++)
        close(request->descriptors[i]);
    return 1;
}

PyObject *importer_serve(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    static struct zygote_request request;
    const char *first;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "y#", &first, &length))
        return NULL;
    is_importer = 1;
    importer_renew_openssl();
    /* After other results no run is forked, and a module may have replaced the standard streams. */
    if (length == sizeof(struct imported) && first[1] == IMPORTED_ALL && program_freeze())
        return NULL;
    zygote_answer(first, (size_t)length);
    for (;;) {
        zygote_receive(&request);
        if (request.bytes[0] == IMPORTER_IMPORT)
            Py_RETURN_TRUE;
        if (request.bytes[0] == ZYGOTE_FORK && !serve_fork(&request))
            break;
    }
    is_importer = 0;
    if (program_note_start())
        return NULL;
    Py_RETURN_NONE;
}

/* --- what forks inherit */

extern char **environ;

static PyObject *signal_state(void)
{
    struct {
        void (*handlers[NSIG])(int);
        int flags[NSIG];
        int has_timer[ITIMER_PROF + 1];
        sigset_t blocked;
    } state;
    struct itimerval left;
    struct sigaction action;
    memset(&state, 0, sizeof state);
    for (int number = 1; number < NSIG; number++)
        if (!sigaction(number, NULL, &action)) { /* fails for the two signals of the C library */
            state.handlers[number] = action.sa_handler;
            state.flags[number] = action.sa_flags;
        }
    for (int timer = ITIMER_REAL; timer <= ITIMER_PROF; timer++)
        state.has_timer[timer] =
            !getitimer((__itimer_which_t)timer, &left) && (left.it_value.tv_sec || left.it_value.tv_usec);
    sigemptyset(&state.blocked);
    sigprocmask(SIG_SETMASK, NULL, &state.blocked);
    return PyBytes_FromStringAndSize((const char *)&state, sizeof state);
}

PyObject *importer_process_state(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(nothing))
{
    PyObject *variables = PyList_New(0);
    for (char **variable = environ; variables && variable && *variable; variable++) {
        PyObject *text = PyBytes_FromString(*variable);
        if (!text || PyList_Append(variables, text))
            return NULL;
        Py_DECREF(text);
    }
    return Py_BuildValue("NN", signal_state(), variables);
}
