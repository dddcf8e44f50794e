/* See zygote_config.h. No public function changes the configuration, so this uses the interpreter's own
 * headers. */
#define Py_BUILD_CORE
#include <Python.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>

#include "zygote_config.h"

#include <wchar.h>

static int replace(wchar_t **text, const wchar_t *by)
{
    size_t size = (wcslen(by) + 1) * sizeof *by;
    wchar_t *copy = PyMem_RawMalloc(size);
    if (!copy)
        return -1;
    memcpy(copy, by, size);
    PyMem_RawFree(*text);
    *text = copy;
    return 0;
}

int config_set_program(const wchar_t *directory, const wchar_t *path)
{
    PyConfig *config = &PyInterpreterState_Main()->config;
    return replace(&config->sys_path_0, directory) || replace(&config->run_filename, path) ? -1 : 0;
}

int config_has_audit_hooks(void)
{
    return PyInterpreterState_Main()->audit_hooks != NULL || _PyRuntime.audit_hooks.head != NULL;
}
