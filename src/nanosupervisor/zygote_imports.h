/* The import of hidden modules, and the notes of the modules that a run changes. The other half is
 * hidden_modules.py. */
#ifndef ZYGOTE_IMPORTS_H
#define ZYGOTE_IMPORTS_H

/* imports_hook(waiting, hand_out): from now on an import of a name in the dict `waiting` calls
 * `hand_out(name)` first. If that returns None, the import goes on as usual. */
PyObject *imports_hook(PyObject *module, PyObject *arguments);
/* imports_watch(module, changed, freely_set): put the module's name into the dict `changed` when a name is
 * set in it that is not in the set freely_set[module's name]. Call it for any number of modules, with the
 * same two dicts. */
PyObject *imports_watch(PyObject *module, PyObject *arguments);
/* imports_hold(object): keep the object until the process ends, and do not count its references. So a run
 * that uses the object does not write to its memory, which would have to be copied. */
PyObject *imports_hold(PyObject *module, PyObject *object);
/* Call this before modules are deallocated. */
void imports_stop_watching(void);
/* Return a new reference to the module of that name, hidden or not; NULL without an error if there is
 * none. */
PyObject *imports_get(const char *name);

#endif
