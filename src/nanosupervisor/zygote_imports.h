/* Hooks in the interpreter for hidden modules: they import hidden modules, and note which modules a run
 * changes. hidden_modules.py makes the decisions. */
#ifndef ZYGOTE_IMPORTS_H
#define ZYGOTE_IMPORTS_H

/* imports_hook(waiting, hand_out): from now on an import of a name in the dict `waiting` first calls
 * `hand_out(name)`. If the call returns None, the import continues as usual. */
PyObject *imports_hook(PyObject *module, PyObject *arguments);
/* imports_watch(module, changed, freely_set): when a run sets a name in the module, put the module's name
 * into the dict `changed`. Names in the set freely_set[module's name] are ignored. Call this for any number
 * of modules, with the same two dicts. */
PyObject *imports_watch(PyObject *module, PyObject *arguments);
/* imports_hold(object): keep the object until the process ends, and stop counting its references. So a run
 * that uses the object does not write to the object's memory, and the kernel need not copy that page. */
PyObject *imports_hold(PyObject *module, PyObject *object);
/* Call this before modules are deallocated. */
void imports_stop_watching(void);
/* Return a new reference to the module of that name, hidden or not. Return NULL without an error if it was
 * never imported. */
PyObject *imports_get(const char *name);

#endif
