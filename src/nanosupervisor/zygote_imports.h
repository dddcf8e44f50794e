/* The import system's call for a module that is hidden, and the watch over what a run changes in modules.
 * The other half is hidden_modules.py. */
#ifndef ZYGOTE_IMPORTS_H
#define ZYGOTE_IMPORTS_H

/* imports_hook(waiting, hand_out): from now on an import of a name in the dict `waiting` first asks `hand_out(name)`,
 * and goes on as usual when that returns None. */
PyObject *imports_hook(PyObject *module, PyObject *arguments);
/* imports_watch(module, changed, freely_set): put the module's name into the dict `changed` when a name is set in it that
 * is not in `freely_set` (None, or a set). May be called for as many modules as there are, with one `changed`. */
PyObject *imports_watch(PyObject *module, PyObject *arguments);
/* imports_hold(object): it lives as long as the process and its references are not counted, so that a run that uses it does
 * not have to copy the memory that it lies in. */
PyObject *imports_hold(PyObject *module, PyObject *object);
/* To be called before modules are taken apart. */
void imports_stop_watching(void);
/* The module of that name, hidden or not; NULL without an error when there is none. A new reference. */
PyObject *imports_get(const char *name);

#endif
