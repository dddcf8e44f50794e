/* The importer's side of its protocol with the supervisor (importer.h), and what importer.py must know about the
 * process. */
#ifndef ZYGOTE_IMPORTER_H
#define ZYGOTE_IMPORTER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Call this before any library is loaded: note the threads at each fork of an importer. */
int importer_note_threads_at_fork(void);
/* Make each OpenSSL library that is loaded take its random numbers from the kernel (zygote_module.c). */
void importer_renew_openssl(void);
/* The methods of `_nanozygote`; zygote_module.c has their documentation. */
PyObject *importer_serve(PyObject *module, PyObject *arguments);
PyObject *importer_is_alone(PyObject *module, PyObject *nothing);
PyObject *importer_process_state(PyObject *module, PyObject *nothing);

#endif
