/* A Node.js add-on with two functions for the standby process that JavaScript does not have (standby.js in
 * src/nanosupervisor):
 *
 *   execute(job)      replaces the process by the job's program; Node.js has process.execve from 23.11 on
 *   restartClocks()   sets the start of the process to now, for `process.uptime` and for worker threads; returns the
 *                     time in µs since the Unix epoch
 *
 * The job is {argument count, environment count} (32 bits each, little-endian), then so many
 * NUL-terminated strings. It comes from the supervisor and is trusted.
 *
 * The declarations replace Node-API's headers, which Debian has only in a package of 20 MB.
 * https://nodejs.org/api/n-api.html */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct napi_env__ *napi_env;
typedef struct napi_value__ *napi_value;
typedef struct napi_callback_info__ *napi_callback_info;
typedef napi_value (*napi_callback)(napi_env env, napi_callback_info info);
extern int napi_get_cb_info(napi_env env, napi_callback_info info, size_t *count, napi_value *arguments,
                            napi_value *self, void **data);
extern int napi_get_buffer_info(napi_env env, napi_value value, void **data, size_t *length);
extern int napi_create_function(napi_env env, const char *name, size_t length, napi_callback callback, void *data,
                                napi_value *result);
extern int napi_create_double(napi_env env, double value, napi_value *result);
extern int napi_set_named_property(napi_env env, napi_value object, const char *name, napi_value value);

/* The variables in which libnode keeps the start of the process: src/node.cc and src/node_perf.cc of
 * Node.js 20. The third is in µs since the Unix epoch, the others in ns of the monotonic clock. They are
 * weak symbols: a Node.js without them keeps its clocks. */
#define CLOCK(type, name, symbol) extern type name __asm__(symbol) __attribute__((weak))
CLOCK(uint64_t, node_start, "_ZN4node11per_process15node_start_timeE");
CLOCK(uint64_t, process_start, "_ZN4node11performance25performance_process_startE");
CLOCK(double, process_start_timestamp, "_ZN4node11performance35performance_process_start_timestampE");
CLOCK(uint64_t, v8_start, "_ZN4node11performance20performance_v8_startE");

#define JOB 3 /* the job socket: it closes when the program is executed; if that fails, its errno is sent there */

/* Return pointers to `count` strings at `next`, and move `next` behind them; NULL if there is no memory. */
static char **take(char **next, uint32_t count)
{
    char **strings = calloc(count + 1, sizeof *strings);
    for (uint32_t index = 0; strings && index < count; index++, *next += strlen(*next) + 1)
        strings[index] = *next;
    return strings;
}

/* Undo what the program would inherit from Node.js: an ignored SIGPIPE, and streams that are closed on
 * execve. The kernel resets signals that Node.js handles. */
static void restore_process_state(void)
{
    signal(SIGPIPE, SIG_DFL);
    for (int stream = 0; stream <= 2; stream++)
        fcntl(stream, F_SETFD, 0);
}

static napi_value execute(napi_env env, napi_callback_info info)
{
    napi_value job;
    size_t length, count = 1;
    void *data;
    if (napi_get_cb_info(env, info, &count, &job, NULL, NULL) || napi_get_buffer_info(env, job, &data, &length))
        return NULL;
    uint32_t counts[2];
    memcpy(counts, data, sizeof counts);
    char *next = (char *)data + sizeof counts;
    char **arguments = take(&next, counts[0]);
    char **environment = take(&next, counts[1]);
    if (!arguments || !environment)
        return NULL;
    restore_process_state();
    fcntl(JOB, F_SETFD, FD_CLOEXEC);
    execve(arguments[0], arguments, environment);
    uint32_t error = (uint32_t)errno;
    if (write(JOB, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}

static uint64_t nanoseconds(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static napi_value restart_clocks(napi_env env, napi_callback_info info)
{
    uint64_t now = nanoseconds(CLOCK_MONOTONIC);
    double timestamp = (double)(nanoseconds(CLOCK_REALTIME) / 1000);
    napi_value result = NULL;
    (void)info;
    if (&node_start && &process_start && &process_start_timestamp && &v8_start) {
        node_start = process_start = v8_start = now;
        process_start_timestamp = timestamp;
    }
    napi_create_double(env, timestamp, &result);
    return result;
}

static void offer(napi_env env, napi_value exports, const char *name, napi_callback callback)
{
    napi_value function;
    if (!napi_create_function(env, name, strlen(name), callback, NULL, &function))
        napi_set_named_property(env, exports, name, function);
}

__attribute__((visibility("default"))) napi_value napi_register_module_v1(napi_env env, napi_value exports)
{
    offer(env, exports, "execute", execute);
    offer(env, exports, "restartClocks", restart_clocks);
    return exports;
}
