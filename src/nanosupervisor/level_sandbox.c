/* The sandbox level (level.h): each run has its own sandbox, which is pre-created while no job waits for
 * it.
 *
 * If a run needs another kind of process than expected, or other limits, the sandbox is replaced before
 * the run. */
#define _GNU_SOURCE
#include "level.h"
#include "interpreter.h"
#include "sandbox.h"
#include "zygote.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LARGE_BYTES (1u << 20) /* a run's files are large if they take more */

/* The worker's configuration, and facts about this image and the code. */
static struct {
    struct confinement confinement;
    struct work_limits work;
    char *modules; /* for every zygote of this container */
    size_t modules_length;
    struct interpreter interpreter;
    int has_code;                /* the container's /work contains code */
    int zygote_has_code_modules; /* the zygote has imported modules for this code */
} setup;

/* The sandbox of the current run; between runs, of the next run. */
static struct {
    struct sandbox sandbox;
    struct confinement confinement;
    enum kind requested; /* wanted kind of process; if the interpreter failed, the process is of KIND_EXEC */
    int has_code;        /* the code is mounted */
} current;

/* ---- creating sandboxes ahead of runs ----------------------------------------------------------------- */

static void discard(void)
{
    struct sandbox *sandbox = &current.sandbox;
    struct zygote_exit ignored;
    if (!sandbox->init)
        return;
    sandbox_kill(sandbox);
    if (sandbox->zygote_child)
        zygote_await_exit(sandbox->zygote_child, &ignored);
    close(sandbox->in);
    close(sandbox->out);
    close(sandbox->err);
    sandbox_close(sandbox);
}

/* Start the zygote, or start it again. First discard the sandbox, because the old zygote must reap the
 * process that it has forked there. */
static void start_zygote(void)
{
    discard();
    if (setup.interpreter.kind == KIND_ZYGOTE)
        zygote_start(&setup.interpreter, setup.modules, setup.modules_length);
    setup.zygote_has_code_modules = 0;
}

/* Create the next sandbox. Return 0 if its pre-created process has failed. */
static int create(const struct interpreter *interpreter, const struct confinement *confinement)
{
    discard();
    current.confinement = *confinement;
    current.has_code = 0;
    int made = sandbox_open(&current.sandbox, &setup.work, confinement, interpreter);
    listening_hand_over(&current.sandbox.listening);
    return made && sandbox_wait_ready(&current.sandbox);
}

static void attach_code(void)
{
    sandbox_attach_code(&current.sandbox);
    current.has_code = 1;
}

/* Pre-create a sandbox with a process of that kind. If the interpreter does not start, use a process of
 * KIND_EXEC: programs then start more slowly, but give the same results. */
static void precreate(enum kind kind, const struct confinement *confinement)
{
    current.requested = kind;
    if (kind == KIND_ZYGOTE && !zygote_is_running())
        start_zygote();
    if (kind == KIND_ZYGOTE && !zygote_is_running())
        kind = KIND_EXEC;
    if ((kind == KIND_EXEC || !create(&setup.interpreter, confinement)) && !create(&no_interpreter, confinement))
        die("a pre-created process ended");
    if (setup.has_code)
        attach_code();
}

static void set_up(const struct settings *settings)
{
    setup.confinement = settings->confinement;
    setup.work = settings->work;
    setup.modules_length = settings->modules_length;
    setup.modules = malloc(settings->modules_length + 1);
    if (!setup.modules)
        die("no memory");
    memcpy(setup.modules, settings->modules, settings->modules_length);
    interpreter_read(&setup.interpreter);
    sandbox_prepare_supervisor();
    start_zygote();
    precreate(setup.interpreter.kind, &setup.confinement);
}

/* Let the zygote import the modules of the code. Return whether a process that was forked earlier is now
 * outdated. */
static int preload_modules(const struct new_code *code)
{
    if (setup.zygote_has_code_modules)
        start_zygote(); /* the old one has the modules of the previous code */
    if (!code->modules_length || !zygote_is_running())
        return 0;
    if (zygote_preload(code->modules, code->modules_length, container_dirs.directory[WRITABLE_WORK]))
        setup.zygote_has_code_modules = 1;
    else
        start_zygote();
    return 1;
}

static void take_code(const struct new_code *code)
{
    int is_outdated = current.has_code || (code->limits_changed && setup.interpreter.kind == KIND_STANDBY);
    setup.has_code = 1;
    if (preload_modules(code))
        is_outdated = 1;
    if (is_outdated || !current.sandbox.init)
        precreate(setup.interpreter.kind, &setup.confinement);
    else
        attach_code();
}

/* ---- starting the program ----------------------------------------------------------------------------- */

/* Return the kind of process that can become the run's program. A waiting interpreter can run only a
 * script. */
static enum kind kind_for(const struct run *run)
{
    const struct interpreter *interpreter = &setup.interpreter;
    int fits = interpreter->kind != KIND_EXEC && run->request.argument_count >= 2 &&
               !strcmp(run->arguments[0], interpreter->words[0]) && run->arguments[1][0] != '-';
    return fits ? interpreter->kind : KIND_EXEC;
}

/* Replace the current sandbox if it does not suit the run. That is rare. The worker gets the
 * listening sockets of such a new sandbox too late for the run. This is no problem, because only builds
 * need a replacement, and builds have no network. */
static void ensure_sandbox(const struct run *run)
{
    struct confinement wanted = {run->request.file_size_bytes, run->request.open_files, 0};
    if (!current.sandbox.init || current.requested != kind_for(run) ||
        memcmp(&wanted, &current.confinement, sizeof wanted) != 0)
        precreate(kind_for(run), &wanted);
    if (!current.has_code)
        attach_code();
}

static uint32_t start(struct run *run)
{
    ensure_sandbox(run);
    struct sandbox *sandbox = &current.sandbox;
    uint32_t error = run_write_payload(run, &sandbox->dirs);
    run_note_start(run);
    run_open_streams(run, sandbox->in, sandbox->out, sandbox->err);
    if (!error && !sandbox_start(sandbox, &run->job, run->strings))
        error = EPIPE;
    return error;
}

/* ---- watching and ending it --------------------------------------------------------------------------- */

/* The parent of the program, the zygote or init, reports its end. */
static int end_fd(void)
{
    return current.sandbox.parent == PARENT_ZYGOTE ? zygote_fd() : current.sandbox.control;
}

static void note_zygote_exit(struct run *run, const struct zygote_exit *end)
{
    if (end->pid != current.sandbox.zygote_child)
        return;
    run->report.user_us += end->user_us;
    run->report.system_us += end->system_us;
    run_note_end(run, end->status);
}

static void check_end(struct run *run)
{
    struct zygote_exit end;
    int status;
    if (current.sandbox.parent == PARENT_INIT) {
        if (sandbox_program_has_ended(&current.sandbox, &status))
            run_note_end(run, status);
    } else if (zygote_take_exit(&end)) {
        note_zygote_exit(run, &end);
    } else if (!zygote_is_running()) {
        run->report.flags |= EXIT_ORPHANED; /* the worker finds the reason in the kernel's counters */
        run_note_end(run, SIGKILL);
    }
}

static pid_t network_process(void)
{
    return current.sandbox.init;
}

static void terminate(void)
{
    sandbox_terminate(&current.sandbox);
}

/* Kill the remaining processes of a run whose program has ended. Return 0 if init must be killed for that. */
static int kill_others(void)
{
    if (current.sandbox.parent == PARENT_INIT)
        return 1; /* init has killed them before its report */
    return zygote_is_running() && sandbox_kill_run(&current.sandbox);
}

static void kill_with_init(struct run *run)
{
    struct sandbox *sandbox = &current.sandbox;
    struct zygote_exit end;
    int status;
    sandbox_kill(sandbox);
    if (run->ended)
        return;
    if (sandbox->parent == PARENT_INIT) {
        run_note_end(run, sandbox_program_has_ended(sandbox, &status) ? status : SIGKILL);
    } else {
        zygote_await_exit(sandbox->zygote_child, &end);
        note_zygote_exit(run, &end);
    }
}

/* If possible, let init live until the run has been reported, because killing it takes long. */
static void kill_run(struct run *run)
{
    if (!run->ended || !kill_others())
        kill_with_init(run);
    if (!run->report.exec_error)
        run->report.exec_error = sandbox_exec_error(&current.sandbox);
}

/* ---- after the report --------------------------------------------------------------------------------- */

static void remove_sandbox(struct sandbox *sandbox)
{
    if (sandbox->init)
        sandbox_kill(sandbox);
    sandbox_close(sandbox);
    writable_release_in_flight(); /* no run can reach these descriptors, but they keep memory in use */
}

/* The next run gets a new sandbox and can reach nothing of this run, so DONE is usually sent at once. The kernel
 * then removes the old sandbox while the next one is created. If the run's files are large, the sandbox is removed
 * before DONE: otherwise the worker would find the memory of the files still in use. */
static void finish(const struct run *run)
{
    struct sandbox spent = current.sandbox;
    int is_large = writable_used_bytes(run->dirs) > LARGE_BYTES;
    current.sandbox.init = 0;
    if (is_large)
        remove_sandbox(&spent);
    wire_send_done(1);
    if (spent.init)
        kill(spent.init, SIGKILL);
    if (run->request.prepare_next) {
        const struct ready_report report = {0};
        precreate(setup.interpreter.kind, &current.confinement);
        wire_send_ready(&report);
    }
    if (!is_large)
        remove_sandbox(&spent);
}

const struct level sandbox_level = {
    .number = LEVEL_SANDBOX,
    .has_netlink = 1,
    .set_up = set_up,
    .take_code = take_code,
    .start = start,
    .end_fd = end_fd,
    .check_end = check_end,
    .network_process = network_process,
    .terminate = terminate,
    .kill_run = kill_run,
    .finish = finish,
};
