/* The zygote of the Node.js image: `node` with this library in LD_PRELOAD, which stops it before its main().
 *
 * The dynamic loader binds 60,000 symbols of libnode before main(). This takes 40 ms of CPU time, almost half of the
 * time that a standby process takes to start. The zygote does it once. Each process that it forks continues with
 * main(), in its sandbox: it starts from the snapshot (standby.js) and shares the bound pages. The zygote has one
 * thread and has run no code of Node.js or V8, so nothing of a run is common to two processes, except the layout of
 * the libraries.
 *
 * An executable's first function calls __libc_start_main() when all libraries are initialized. */
#define _GNU_SOURCE
#include "zygote_server.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef int main_function(int, char **, char **);
typedef int start_function(main_function *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);

/* Remove the variable, also from the memory that /proc/self/environ shows. It must be the last one there. */
static void remove_preload(void)
{
    char *value = getenv("LD_PRELOAD");
    if (!value)
        return;
    memset(value - strlen("LD_PRELOAD="), 0, strlen("LD_PRELOAD=") + strlen(value));
    unsetenv("LD_PRELOAD");
}

__attribute__((visibility("default"))) int __libc_start_main(main_function *main, int argument_count, char **arguments,
                                                             void (*init)(void), void (*fini)(void),
                                                             void (*loader_fini)(void), void *stack_end)
{
    static const struct zygote_hooks no_hooks;
    static const struct preloaded no_modules = {ZYGOTE_PRELOADED, 1};
    static const char ready = ZYGOTE_READY;
    static struct zygote_request request;
    start_function *start = (start_function *)dlsym(RTLD_NEXT, "__libc_start_main");
    remove_preload();
    zygote_set_up();
    zygote_answer(&ready, sizeof ready);
    while (zygote_serve(&request, &no_hooks))
        zygote_answer(&no_modules, sizeof no_modules); /* Node.js has no modules to import in advance */
    return start(main, argument_count, arguments, init, fini, loader_fini, stack_end);
}
