/* See zygote_imports.h.
 *
 * IMPORT_NAME, `__import__` and `importlib.import_module` call `_frozen_importlib._find_and_load` for a
 * module that is not in sys.modules. A C function replaces that function, because a C function has no frame
 * and so appears in no traceback.
 *
 * Dict watchers (CPython 3.12 and later) take no time until a watched dict is changed. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "zygote_config.h"
#include "zygote_imports.h"

#include <string.h>

static PyObject *waiting, *hand_out;
static PyObject *find_and_load; /* the import system's own function */
static PyObject *changed;
static PyObject *freely_set; /* module's name -> set of names */
static int watcher = -1;

/* Whether the program traces, profiles or audits its execution. Then it must see the normal load of a module. */
static int is_watched(void)
{
    PyThreadState *own = PyThreadState_Get();
    return own->c_tracefunc || own->c_profilefunc || config_has_audit_hooks();
}

static PyObject *find_and_load_hidden(PyObject *Py_UNUSED(self), PyObject *const *arguments, Py_ssize_t count)
{
    if (count == 2 && PyDict_GET_SIZE(waiting) && PyDict_Contains(waiting, arguments[0]) == 1 && !is_watched()) {
        PyObject *module = PyObject_CallOneArg(hand_out, arguments[0]);
        if (module && module != Py_None)
            return module;
        Py_XDECREF(module);
    }
    PyErr_Clear();
    return PyObject_Vectorcall(find_and_load, arguments, (size_t)count, NULL);
}

static PyMethodDef hook = {"_find_and_load", (PyCFunction)(void (*)(void))find_and_load_hidden, METH_FASTCALL,
                           "Find and load the module."};

PyObject *imports_hook(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *bootstrap = PyImport_ImportModule("_frozen_importlib"), *function;
    if (!bootstrap || !PyArg_ParseTuple(arguments, "O!O", &PyDict_Type, &waiting, &hand_out))
        return NULL;
    Py_INCREF(waiting);
    Py_INCREF(hand_out);
    find_and_load = PyObject_GetAttrString(bootstrap, hook.ml_name);
    function = find_and_load ? PyCFunction_NewEx(&hook, NULL, NULL) : NULL;
    if (!function || PyObject_SetAttrString(bootstrap, hook.ml_name, function))
        return NULL;
    Py_DECREF(function);
    Py_DECREF(bootstrap);
    Py_RETURN_NONE;
}

/* Whether `value` is the package's submodule of that name. Every import of a submodule sets such a name. */
static int is_submodule(PyObject *package, PyObject *name, PyObject *value)
{
    const char *full, *last, *own = PyUnicode_Check(package) ? PyUnicode_AsUTF8(package) : NULL;
    if (!own || !value || !PyModule_Check(value) || !(full = PyModule_GetName(value)) || !PyUnicode_Check(name))
        return 0;
    last = strrchr(full, '.');
    return last && strlen(own) == (size_t)(last - full) && !strncmp(full, own, strlen(own)) &&
           PyUnicode_CompareWithASCIIString(name, last + 1) == 0;
}

/* Whether the run may set this name without an effect on modules that are loaded later. */
static int is_free(PyObject *module, PyObject *name)
{
    PyObject *names = PyDict_GetItemWithError(freely_set, module);
    return PyUnicode_CompareWithASCIIString(name, "__warningregistry__") == 0 ||
           (names && PySet_Contains(names, name) == 1);
}

static int note_change(PyDict_WatchEvent event, PyObject *names, PyObject *name, PyObject *value)
{
    PyObject *module;
    if (event == PyDict_EVENT_DEALLOCATED || !changed)
        return 0;
    PyObject *raised = PyErr_GetRaisedException();
    module = PyDict_GetItemString(names, "__name__");
    if (module && PyDict_Contains(changed, module) == 0 &&
        !(name && PyUnicode_Check(name) && (is_free(module, name) || is_submodule(module, name, value))))
        PyDict_SetItem(changed, module, Py_None);
    PyErr_Clear();
    PyErr_SetRaisedException(raised);
    return 0;
}

PyObject *imports_hold(PyObject *Py_UNUSED(module), PyObject *object)
{
    object->ob_refcnt = _Py_IMMORTAL_REFCNT;
    Py_RETURN_NONE;
}

PyObject *imports_watch(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    PyObject *watched, *into, *free_names;
    if (!PyArg_ParseTuple(arguments, "OO!O!", &watched, &PyDict_Type, &into, &PyDict_Type, &free_names))
        return NULL;
    if (watcher < 0 && (watcher = PyDict_AddWatcher(note_change)) < 0)
        return NULL;
    Py_XSETREF(changed, Py_NewRef(into));
    Py_XSETREF(freely_set, Py_NewRef(free_names));
    if (PyModule_Check(watched) && PyDict_Watch(watcher, PyModule_GetDict(watched)))
        return NULL;
    Py_RETURN_NONE;
}

void imports_stop_watching(void)
{
    if (watcher >= 0)
        PyDict_ClearWatcher(watcher);
    watcher = -1;
}

PyObject *imports_get(const char *name)
{
    PyObject *text = PyUnicode_FromString(name), *found = text ? PyImport_GetModule(text) : NULL;
    PyObject *load = !found && text && waiting ? PyDict_GetItemWithError(waiting, text) : NULL;
    if (load)
        found = PyObject_GetAttrString(load, "module");
    Py_XDECREF(text);
    return found;
}
