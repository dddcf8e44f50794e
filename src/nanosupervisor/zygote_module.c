/* The Python module `_nanozygote`, with which zygote.py serves the supervisor. The messages are described in
 * zygote_protocol.h.
 *
 * For a run, the zygote only forks. It runs no Python code, except the hooks of os.register_at_fork(). A forked
 * process runs no Python before it is confined. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "zygote_config.h"
#include "zygote_importer.h"
#include "zygote_imports.h"
#include "zygote_program.h"
#include "zygote_server.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>

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

/* Normally OpenSSL detects a fork by a new process number.
 * But the number is the same in each sandbox, and may be the zygote's number. So two runs would get the same
 * random numbers. To seed OpenSSL again would take 1 ms for each run; the kernel's numbers need no seed. If no
 * module has loaded OpenSSL, this does nothing. A package may contain another libcrypto. */
static int renew_library(struct dl_phdr_info *object, size_t Py_UNUSED(size), void *Py_UNUSED(nothing))
{
    static const struct random_method kernel = {random_seed, random_bytes, NULL,
                                                random_add,  random_bytes, random_status};
    const char *slash = strrchr(object->dlpi_name, '/'), *name = slash ? slash + 1 : object->dlpi_name;
    void *library = strncmp(name, "libcrypto", 9) ? NULL : dlopen(object->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
    int (*set_method)(const struct random_method *) = library ? dlsym(library, "RAND_set_rand_method") : NULL;
    if (set_method)
        set_method(&kernel);
    return 0;
}

void importer_renew_openssl(void)
{
    dl_iterate_phdr(renew_library, NULL);
}

/* --- the module */

/* Return the names of a ZYGOTE_PRELOAD message: (modules, entries of the code's directory). */
static PyObject *names_of(struct zygote_request *request)
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
    static const struct zygote_hooks hooks = {PyOS_BeforeFork, PyOS_AfterFork_Parent, PyOS_AfterFork_Child};
    static struct zygote_request request;
    struct fork_request forked;
    static int is_set_up;
    const char *first;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "y#", &first, &length))
        return NULL;
    if (!is_set_up)
        zygote_set_up();
    is_set_up = 1;
    importer_renew_openssl();
    if (program_freeze())
        return NULL;
    zygote_answer(first, (size_t)length);
    if (zygote_serve(&request, &hooks)) /* in C, because Python would take time */
        return names_of(&request);
    memcpy(&forked, request.bytes, sizeof forked);
    if (forked.confinement.importer)
        Py_RETURN_TRUE;
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
     "serve(message) -> None | True | (modules, entries)\n\nSend the message and serve the supervisor. Return None in a "
     "new process, which is confined and has the job socket as descriptor 3; True in a new process that is to be the "
     "importer. In the zygote itself return the modules to import and the names in the code's directory. End the "
     "process when the supervisor has ended."},
    {"serve_importer", importer_serve, METH_VARARGS,
     "serve_importer(message) -> None | True\n\nSend the message and serve the supervisor, in the importer. Return None in a "
     "new process, like serve(); in the importer itself, True when it is to import the packages of the code."},
    {"is_alone", importer_is_alone, METH_NOARGS, "Whether a fork of this process finds no other thread."},
    {"process_state", importer_process_state, METH_NOARGS,
     "process_state() -> (signals, variables)\n\nReturn a value that changes with the signal handlers, the signal mask "
     "and the timers of this process, and the environment of its C library."},
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
    if (importer_note_threads_at_fork() || program_import_modules() || config_set_program(L"/work", L"/work/main.py"))
        return NULL;
    return PyModule_Create(&definition);
}
