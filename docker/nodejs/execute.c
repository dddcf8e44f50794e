/* An add-on of Node.js, which has no execve of its own (process.execve came with 23.11): loading it replaces the
 * process by the program that a job asks for. For jobs that a spare cannot serve (src/nanosupervisor/spare.js).
 *
 * What is loaded is {exports: <the job's bytes>}: argument count, environment count (32 bits, little-endian),
 * then that many NUL-terminated strings. They are the supervisor's, and are believed.
 *
 * The three declarations stand in for Node-API's headers, which Debian has only in a package of 20 MB.
 * https://nodejs.org/api/n-api.html */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct napi_env__ *napi_env;
typedef struct napi_value__ *napi_value;
extern int napi_get_buffer_info(napi_env env, napi_value value, void **data, size_t *length);

#define JOB 3 /* where the supervisor waits: for the end of it, or for an errno */

static char **take(char **next, uint32_t count)
{
    char **strings = calloc(count + 1, sizeof *strings);
    for (uint32_t index = 0; strings && index < count; index++, *next += strlen(*next) + 1)
        strings[index] = *next;
    return strings;
}

/* Node.js ignores SIGPIPE, and what is ignored stays ignored; a caught signal is reset by the kernel. */
static void as_a_new_process_finds_it(void)
{
    signal(SIGPIPE, SIG_DFL);
    for (int stream = 0; stream <= 2; stream++)
        fcntl(stream, F_SETFD, 0);
}

__attribute__((visibility("default"))) napi_value napi_register_module_v1(napi_env env, napi_value job)
{
    void *data;
    size_t length;
    if (napi_get_buffer_info(env, job, &data, &length))
        return NULL;
    uint32_t counts[2];
    memcpy(counts, data, sizeof counts);
    char *next = (char *)data + sizeof counts;
    char **arguments = take(&next, counts[0]);
    char **environment = take(&next, counts[1]);
    if (!arguments || !environment)
        return NULL;
    as_a_new_process_finds_it();
    fcntl(JOB, F_SETFD, FD_CLOEXEC);
    execve(arguments[0], arguments, environment);
    uint32_t error = (uint32_t)errno;
    if (write(JOB, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}
