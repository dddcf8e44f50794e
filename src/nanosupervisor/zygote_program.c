/* See zygote_program.h.
 *
 * This does the same as `python3 main.py` after its start, in CPython 3.13: pymain_run_file_obj() in
 * Modules/main.c, _PyRun_SimpleFileObject() and _PyErr_PrintEx() in Python/pythonrun.c, _Py_Finalize() in
 * Python/pylifecycle.c. The order of the steps is the same, because the program can observe each step. But
 * here a Python function of the zygote calls program_run(). The program must not see that function: not in
 * tracebacks, not with sys._getframe(), not in the remaining recursion depth.
 *
 * Only the end differs. Finalization would write to most of the zygote's memory, so the kernel would copy it.
 * Most runs do not need finalization, because the process ends immediately afterwards. So it is skipped if the
 * program has left no object that could notice (`can_skip_finalization`). In case of doubt it is done. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "zygote_imports.h"
#include "zygote_program.h"

#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if PY_VERSION_HEX < 0x030d0000 || PY_VERSION_HEX >= 0x030e0000
#error "written for the internals of CPython 3.13; compare the files named above with the new version"
#endif

#define STREAM_PARTS 9 /* text, buffer, raw of each of three */

static PyObject *streams[STREAM_PARTS]; /* the standard streams, borrowed: compared, but not used */
static PyObject *first_frozen; /* head of the collector's permanent generation, which a walk visits last */
static PyObject *sentinel;     /* the run's first object: a walk that visits it has visited all objects of the run */
static Py_ssize_t exit_functions, thread_exit_functions; /* number at the start: those of the zygote's modules */
static unsigned long long libraries;                     /* number at the start */
/* Kept here, because the run has perhaps not imported them. */
static PyObject *atexit_module, *gc_module, *weakref_module, *weakrefset_module;

/* --- before the run */

static int take_first(PyObject *object, void *first)
{
    *(PyObject **)first = object;
    return 0;
}

int program_import_modules(void)
{
    gc_module = PyImport_ImportModule("gc");
    atexit_module = PyImport_ImportModule("atexit");
    weakref_module = PyImport_ImportModule("weakref");
    weakrefset_module = PyImport_ImportModule("_weakrefset");
    return gc_module && atexit_module && weakref_module && weakrefset_module ? 0 : -1;
}

/* Find the parts of a stream: text, buffer, raw. Return 0 if it is not the original stream. The references are
 * borrowed, because an additional reference would keep the stream alive, and it would not be flushed at the end. */
static int find_stream(const char *name, const char *original_name, PyObject **parts)
{
    PyObject *stream = PySys_GetObject(name);
    if (!stream || stream != PySys_GetObject(original_name))
        return 0;
    parts[0] = stream;
    parts[1] = PyObject_GetAttrString(stream, "buffer");
    parts[2] = parts[1] ? PyObject_GetAttrString(parts[1], "raw") : NULL;
    PyErr_Clear();
    Py_XDECREF(parts[2]);
    Py_XDECREF(parts[1]);
    return parts[2] != NULL;
}

static int find_streams(PyObject *parts[STREAM_PARTS])
{
    return find_stream("stdin", "__stdin__", parts) && find_stream("stdout", "__stdout__", parts + 3) &&
           find_stream("stderr", "__stderr__", parts + 6);
}

int program_freeze(void)
{
    PyObject *done, *first = NULL;
    if (!find_streams(streams)) {
        PyErr_SetString(PyExc_RuntimeError, "no standard streams");
        return -1;
    }
    PyGC_Collect();
    done = PyObject_CallMethod(gc_module, "freeze", NULL);
    if (!done)
        return -1;
    Py_DECREF(done);
    /* The other generations are empty now. A later freeze appends to the permanent generation. */
    PyUnstable_GC_VisitObjects(take_first, &first);
    if (!first_frozen)
        first_frozen = Py_XNewRef(first);
    return 0;
}

/* Return the number of functions that will be called at exit; -1 with an error. */
static Py_ssize_t count_exit_functions(void)
{
    PyObject *count = PyObject_CallMethod(atexit_module, "_ncallbacks", NULL);
    Py_ssize_t result = count ? PyLong_AsSsize_t(count) : -1;
    Py_XDECREF(count);
    return result;
}

/* Return the number of functions that will be called before threads are joined; 0 if neither the zygote nor the
 * program has imported `threading`. */
static Py_ssize_t count_thread_exit_functions(void)
{
    PyObject *threading = imports_get("threading");
    PyObject *functions = threading ? PyObject_GetAttrString(threading, "_threading_atexits") : NULL;
    Py_ssize_t result = functions ? PyObject_Size(functions) : 0;
    Py_XDECREF(functions);
    Py_XDECREF(threading);
    PyErr_Clear();
    return result;
}

static int take_loads(struct dl_phdr_info *object, size_t Py_UNUSED(size), void *loads)
{
    *(unsigned long long *)loads = object->dlpi_adds;
    return 1;
}

/* Return the number of shared libraries that have been loaded so far. dl_iterate_phdr(3) */
static unsigned long long count_libraries(void)
{
    unsigned long long loads = 0;
    dl_iterate_phdr(take_loads, &loads);
    return loads;
}

int program_note_start(void)
{
    libraries = count_libraries();
    sentinel = PyList_New(0);
    exit_functions = count_exit_functions();
    thread_exit_functions = count_thread_exit_functions();
    return sentinel && exit_functions >= 0 ? 0 : -1;
}

/* --- the end */

static int flush(PyObject *file)
{
    PyObject *done;
    if (!file || file == Py_None)
        return 0;
    done = PyObject_CallMethod(file, "flush", NULL);
    Py_XDECREF(done);
    if (done)
        return 0;
    PyErr_Clear();
    return -1;
}

static void flush_both(void)
{
    PyObject *raised = PyErr_GetRaisedException();
    flush(PySys_GetObject("stderr"));
    flush(PySys_GetObject("stdout"));
    PyErr_SetRaisedException(raised);
}

struct search {
    int saw_sentinel, found;
};

/* Whether the type's instances run code when they are deallocated. */
static int has_finalizer(const PyTypeObject *type)
{
    return type->tp_finalize || type->tp_del;
}

/* Whether the object is part of a standard stream. Its finalizer does nothing here, because it is flushed. */
static int is_stream(PyObject *object)
{
    for (int i = 0; i < STREAM_PARTS; i++)
        if (streams[i] == object)
            return 1;
    return 0;
}

/* Whether a function is the callback with which a WeakKeyDictionary or a WeakSet removes an entry. The entries are
 * found by the identity of weak references, so no code of the program is called. */
static int removes_weak_key(PyObject *callback)
{
    if (!PyFunction_Check(callback))
        return 0;
    PyObject *names = PyFunction_GET_GLOBALS(callback);
    PyObject *name = ((PyCodeObject *)PyFunction_GET_CODE(callback))->co_qualname;
    return (names == PyModule_GetDict(weakref_module) &&
            PyUnicode_CompareWithASCIIString(name, "WeakKeyDictionary.__init__.<locals>.remove") == 0) ||
           (names == PyModule_GetDict(weakrefset_module) &&
            PyUnicode_CompareWithASCIIString(name, "WeakSet.__init__.<locals>._remove") == 0);
}

/* Whether the object is a weak reference with a callback that the program could notice. Callbacks in C belong to the
 * standard library. They only maintain registries, which the process does not need any more. */
static int has_callback(PyObject *object)
{
    PyObject *callback = PyWeakref_Check(object) ? ((PyWeakReference *)object)->wr_callback : NULL;
    return callback && !PyCFunction_Check(callback) && !removes_weak_key(callback);
}

/* Whether the object is a type with two properties: its instances have a finalizer, and the collector does not
 * track them. A walk visits the type, but not these instances. */
static int makes_untracked_instances_with_finalizer(PyObject *object)
{
    return PyType_Check(object) && !PyType_IS_GC((PyTypeObject *)object) && has_finalizer((PyTypeObject *)object);
}

static int examine(PyObject *object, void *argument)
{
    struct search *search = argument;
    if (object == first_frozen)
        return 0;
    if (object == sentinel)
        search->saw_sentinel = 1;
    else if ((has_finalizer(Py_TYPE(object)) && !is_stream(object)) || has_callback(object) ||
             makes_untracked_instances_with_finalizer(object))
        search->found = 1;
    return !search->found;
}

/* Whether objects exist that would run code when they are deallocated. */
static int has_objects_with_finalizer(void)
{
    struct search search = {0};
    PyObject *now[STREAM_PARTS];
    /* A part that the program has replaced may still exist, and have output that is not flushed. The walk does not
     * visit it, because the zygote has made it. */
    if (!find_streams(now) || memcmp(now, streams, sizeof now))
        return 1;
    PyUnstable_GC_VisitObjects(examine, &search);
    /* If the program has called gc.freeze(), the walk has visited neither the sentinel nor the program's
     * objects. */
    return search.found || !search.saw_sentinel;
}

static int collection_is_watched(void)
{
    PyObject *callbacks = PyObject_GetAttrString(gc_module, "callbacks");
    int watched = !callbacks || PyObject_Size(callbacks) != 0;
    Py_XDECREF(callbacks);
    return watched;
}

static int is_alone(PyThreadState *own)
{
    return PyInterpreterState_ThreadHead(own->interp) == own && !PyThreadState_Next(own) &&
           PyInterpreterState_Head() == PyInterpreterState_Main() &&
           !PyInterpreterState_Next(PyInterpreterState_Main());
}

static int run_exit_functions(void)
{
    PyObject *done = PyObject_CallMethod(atexit_module, "_run_exitfuncs", NULL);
    Py_XDECREF(done);
    PyErr_Clear();
    return done != NULL;
}

/* Return whether finalization can be skipped without an effect that the program notices. This function also
 * calls the exit functions of the zygote's modules (of logging) and flushes the output. Finalization would do
 * the same. */
static int can_skip_finalization(void)
{
    PyThreadState *own = PyThreadState_Get();
    if (!is_alone(own) || own->c_tracefunc || own->c_profilefunc || collection_is_watched())
        return 0;
    if (count_exit_functions() != exit_functions || count_thread_exit_functions() != thread_exit_functions)
        return 0;
    /* A library that the run has loaded may do anything at exit, or when its objects are deallocated: for
     * example, write the end of a file. */
    if (count_libraries() != libraries)
        return 0;
    return run_exit_functions() && !has_objects_with_finalizer() && !flush(PySys_GetObject("stdout")) &&
           !flush(PySys_GetObject("stderr"));
}

/* End by SIGINT, so that the parent sees that the program was interrupted. exit_sigint() */
static void die_of_interrupt(void)
{
    signal(SIGINT, SIG_DFL);
    kill(getpid(), SIGINT);
}

__attribute__((noreturn)) static void finish(int code, int interrupted)
{
    int can_skip = can_skip_finalization();
    PyErr_Clear();
    imports_stop_watching();
    if (interrupted && can_skip)
        die_of_interrupt();
    if (interrupted)
        atexit(die_of_interrupt);
    if (!can_skip)
        Py_Exit(code);
    /* _exit, because the exit functions of the zygote's libraries are not needed. Those of OpenSSL alone
     * take longer than a small program. */
    fflush(NULL);
    _exit(code);
}

/* --- the beginning */

/* Set the thread's state to that of an interpreter before its first frame. */
static void forget_callers(void)
{
    PyThreadState *own = PyThreadState_Get();
    own->current_frame = NULL;
    own->py_recursion_remaining = own->py_recursion_limit;
    own->c_recursion_remaining = Py_C_RECURSION_LIMIT;
}

static PyObject *loader_of(const char *path)
{
    PyObject *bootstrap = PyImport_ImportModule("_frozen_importlib_external");
    PyObject *loader = bootstrap ? PyObject_CallMethod(bootstrap, "SourceFileLoader", "ss", "__main__", path) : NULL;
    Py_XDECREF(bootstrap);
    return loader;
}

/* Create a new `__main__`, with the same names in the same order as when the first line of a program runs. The
 * zygote's `__main__` cannot be used, because the zygote's functions still use its names. Return the dict of the
 * new module, borrowed; NULL with an error. */
static PyObject *fresh_main(const char *path)
{
    PyObject *main = PyModule_New("__main__"), *names = main ? PyModule_GetDict(main) : NULL, *fresh;
    if (!names)
        return NULL;
    fresh = Py_BuildValue("{sNsNsNsNsO}", "__loader__", loader_of(path), "__annotations__", PyDict_New(),
                          "__builtins__", PyImport_ImportModule("builtins"), "__file__",
                          PyUnicode_DecodeFSDefault(path), "__cached__", Py_None);
    if (!fresh || PyDict_Update(names, fresh) || PyDict_SetItemString(PyImport_GetModuleDict(), "__main__", main))
        return NULL;
    Py_DECREF(fresh);
    Py_DECREF(main);
    return names;
}

/* Print an exit code that is not a number, as the interpreter does. */
static void print_exit_code(PyObject *code)
{
    PyObject *file = PySys_GetObject("stderr");
    if (file && file != Py_None) {
        if (PyFile_WriteObject(code, file, Py_PRINT_RAW))
            PyErr_Clear();
    } else {
        if (PyObject_Print(code, stderr, Py_PRINT_RAW))
            PyErr_Clear();
        fflush(stderr);
    }
    PySys_WriteStderr("\n");
}

/* Return the exit code of the SystemExit that is raised, and release the exception. So objects in its traceback
 * are deallocated at the same time as in a plain interpreter. _Py_HandleSystemExit() */
static int take_exit_code(void)
{
    PyObject *raised = PyErr_GetRaisedException(), *asked = PyObject_GetAttrString(raised, "code");
    int code = 1;
    if (asked)
        Py_SETREF(raised, asked);
    PyErr_Clear();
    if (asked == Py_None) {
        code = 0;
    } else if (asked && PyLong_Check(asked)) {
        code = (int)PyLong_AsLongLong(asked);
        PyErr_Clear(); /* too large: -1 */
    } else {
        print_exit_code(raised);
    }
    Py_DECREF(raised);
    return code;
}

static void forget(PyObject *names, const char *name)
{
    if (PyDict_DelItemString(names, name))
        PyErr_Clear();
}

void program_run(const char *path)
{
    PyCompilerFlags flags = _PyCompilerFlags_INIT;
    PyObject *names, *result = NULL;
    int code = 0, interrupted = 0;

    forget_callers();
    names = fresh_main(path);
    FILE *file = names ? fopen(path, "rbe") : NULL;
    if (names && !file)
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
    if (file)
        result = PyRun_FileExFlags(file, path, Py_file_input, names, names, 1 /* close it before the code runs */,
                                   &flags);
    interrupted = PyErr_Occurred() == PyExc_KeyboardInterrupt;
    flush_both();
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_SystemExit)) {
        fflush(stdout);
        finish(take_exit_code(), 0);
    }
    if (!result) {
        PyErr_Print();
        code = 1;
    }
    Py_XDECREF(result);
    forget(names, "__file__");
    forget(names, "__cached__");
    finish(code, interrupted);
}
