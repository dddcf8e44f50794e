/* The sandbox level (level.h): each run has its own sandbox. Sandboxes are pre-created: waiting.h.
 *
 * If a run needs another kind of process than expected, or other limits, the sandboxes that wait are replaced
 * before the run. */
#define _GNU_SOURCE
#include "level.h"
#include "importer.h"
#include "interpreter.h"
#include "sandbox.h"
#include "waiting.h"
#include "zygote.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LARGE_BYTES (1u << 20)  /* a run's files are large if they take more */
#define CLOSE_US (10u * 1000 * 1000) /* a run follows another one closely if it begins within this time */

_Static_assert(WAITING_EVENTS + 1 <= LEVEL_EVENTS, "watch() has too many descriptors");

/* The worker's configuration, and facts about this image and the code. */
static struct {
    struct confinement confinement;
    char *modules; /* for every zygote of this container */
    size_t modules_length;
    struct interpreter interpreter;
    int has_code;                /* the container's /work contains code */
    int zygote_has_code_modules; /* the zygote has imported modules for this code */
} setup;

static struct sandbox current; /* of the current run */
static int owes_ready;         /* the worker waits for READY */
static int follows_closely;    /* the current run began shortly after the previous run */
static uint64_t last_end_us;   /* of the previous run; 0: there was none */

/* ---- creating sandboxes ahead of runs ----------------------------------------------------------------- */

/* Start the zygote, or start it again. First discard the sandboxes, because the old zygote must reap the
 * processes that it has forked there. */
static void start_zygote(void)
{
    waiting_discard();
    if (setup.interpreter.kind != KIND_EXEC)
        zygote_start(&setup.interpreter, setup.modules, setup.modules_length);
    setup.zygote_has_code_modules = 0;
}

static enum kind usual_kind(void)
{
    return importer_is_running() ? KIND_IMPORTER : setup.interpreter.kind;
}

static struct purpose usual_purpose(void)
{
    return (struct purpose){usual_kind(), setup.confinement};
}

/* Begin to create sandboxes until `count` exist. */
static void precreate(size_t count, const struct purpose *purpose)
{
    if (purpose->kind != KIND_EXEC && !zygote_is_running())
        start_zygote();
    waiting_fill(count, purpose);
}

static void set_up(const struct settings *settings)
{
    setup.confinement = settings->confinement;
    setup.modules_length = settings->modules_length;
    setup.modules = malloc(settings->modules_length + 1);
    if (!setup.modules)
        die("no memory");
    memcpy(setup.modules, settings->modules, settings->modules_length);
    interpreter_read(&setup.interpreter);
    sandbox_prepare_supervisor();
    waiting_set_up(&settings->work);
    start_zygote();
    const struct purpose purpose = usual_purpose();
    precreate(1, &purpose);
    waiting_complete();
    waiting_hand_over();
    /* The worker need not wait for the second one. A standby process would be replaced when the code arrives,
     * because the code usually comes with another memory limit. */
    if (purpose.kind != KIND_STANDBY)
        precreate(MAX_WAITING, &purpose);
}

/* Let the zygote import the modules of the code. Return whether processes that were forked earlier are now
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

/* Discard the importer of the previous code, and with it the sandboxes that are inside its namespaces. */
static void stop_importer(void)
{
    if (importer_state() == IMPORTS_OFF)
        return;
    waiting_discard();
    importer_stop();
}

/* Let an importer import the packages of the code. Return whether it forks the processes of runs from now on. */
static int start_importer(const struct new_code *code)
{
    if (!code->reuses_imports || setup.interpreter.kind != KIND_ZYGOTE || !zygote_is_running())
        return 0;
    return importer_start(waiting_limits(), &setup.confinement) == IMPORTS_REUSED;
}

/* Wait for all sandboxes, because the worker then measures the memory of the container (docs/adr/0025). */
static enum imports_state take_code(const struct new_code *code)
{
    int is_outdated = setup.has_code || (code->limits_changed && setup.interpreter.kind == KIND_STANDBY);
    setup.has_code = 1;
    is_outdated |= preload_modules(code);
    is_outdated |= start_importer(code);
    if (is_outdated)
        waiting_discard();
    const struct purpose purpose = usual_purpose();
    precreate(MAX_WAITING, &purpose);
    waiting_attach_code();
    waiting_complete();
    waiting_hand_over();
    return code->reuses_imports && importer_state() == IMPORTS_OFF ? IMPORTS_UNAVAILABLE : importer_state();
}

/* ---- starting the program ----------------------------------------------------------------------------- */

/* Return the kind of process that can become the run's program. A waiting interpreter can run only a
 * script. */
static enum kind kind_for(const struct run *run)
{
    const struct interpreter *interpreter = &setup.interpreter;
    int fits = interpreter->kind != KIND_EXEC && run->request.argument_count >= 2 &&
               !strcmp(run->arguments[0], interpreter->words[0]) && run->arguments[1][0] != '-';
    int importer_waits = waiting_count() && waiting_purpose().kind == KIND_IMPORTER;
    return !fits ? KIND_EXEC : importer_waits ? KIND_IMPORTER : interpreter->kind;
}

/* A run must not get another sandbox than that whose listening sockets the worker has. This is rare: the kernel has
 * killed a process that waits. */
static void die_if_lost(void)
{
    errno = 0;
    if (waiting_was_lost())
        die("a pre-created process was killed while it waited");
}

/* Take the next sandbox. If the sandboxes that wait do not suit the run, replace them. That is rare. The worker gets
 * the listening sockets of such a new sandbox too late for the run. This is no problem, because only builds
 * need a replacement, and builds have no network. */
static void take_sandbox(const struct run *run)
{
    const struct purpose wanted = {kind_for(run), {run->request.file_size_bytes, run->request.open_files, 0, 0}};
    setup.has_code = 1; /* or the working directory is empty */
    if (!waiting_is_for(&wanted))
        waiting_discard();
    waiting_attach_code();
    die_if_lost();
    if (!waiting_is_ready()) {
        precreate(1, &wanted);
        waiting_complete();
        waiting_hand_over();
    }
    current = waiting_take();
    if (current.parent == PARENT_IMPORTER && importer_filter_listener() >= 0)
        sandbox_serve_netlink(&current, importer_filter_listener());
}

static uint32_t start(struct run *run)
{
    take_sandbox(run);
    uint32_t error = run_write_payload(run, &current.dirs);
    run_note_start(run);
    follows_closely = last_end_us && run->started_us - last_end_us < CLOSE_US;
    if (waiting_count()) /* it may have become complete after the worker has read the memory of the container */
        run->report.flags |= EXIT_CREATING;
    run_open_streams(run, current.in, current.out, current.err);
    if (!error && !sandbox_start(&current, &run->job, run->strings))
        error = EPIPE;
    return error;
}

/* ---- watching and ending it --------------------------------------------------------------------------- */

/* The parent of the program, the zygote or init, reports its end. */
static size_t watch(struct pollfd events[LEVEL_EVENTS])
{
    size_t count = waiting_watch(events);
    if (current.init && current.parent != PARENT_IMPORTER) /* waiting_watch() has the descriptors of the importer */
        events[count++] =
            (struct pollfd){current.parent == PARENT_ZYGOTE ? zygote_fd() : current.control, POLLIN, 0};
    return count;
}

static void note_zygote_exit(struct run *run, const struct zygote_exit *end)
{
    run->report.user_us += end->user_us;
    run->report.system_us += end->system_us;
    run_note_end(run, end->status);
}

static void note_importer_exit(struct run *run, const struct importer_exit *end)
{
    run->report.user_us += end->user_us;
    run->report.system_us += end->system_us;
    if (end->is_orphan)
        run->report.flags |= EXIT_ORPHANED;
    run_note_end(run, end->status);
}

static void check_end(struct run *run)
{
    struct zygote_exit end;
    struct importer_exit importer_end;
    int status;
    if (current.parent == PARENT_IMPORTER) {
        if (importer_take_exit(current.importer_child, &importer_end))
            note_importer_exit(run, &importer_end);
    } else if (current.parent == PARENT_INIT) {
        if (sandbox_program_has_ended(&current, &status))
            run_note_end(run, status);
    } else if (zygote_take_exit(current.zygote_child, &end)) {
        note_zygote_exit(run, &end);
    } else if (!zygote_is_running()) {
        run->report.flags |= EXIT_ORPHANED; /* the worker finds the reason in the kernel's counters */
        run_note_end(run, SIGKILL);
    }
}

/* Send READY if the worker waits for it and a run can start. */
static void send_owed_ready(void)
{
    const struct ready_report report = {.imports = (uint8_t)importer_state()};
    if (!owes_ready || !waiting_is_ready())
        return;
    owes_ready = 0;
    waiting_hand_over();
    wire_send_ready(&report);
}

/* Failed sandboxes are replaced between runs only: a run may have used up the memory that they need. */
static void serve(struct run *run)
{
    waiting_advance();
    if (run) {
        check_end(run);
        return;
    }
    die_if_lost();
    if (waiting_has_failed()) {
        const struct purpose purpose = {waiting_purpose().kind == KIND_EXEC ? KIND_EXEC : usual_kind(),
                                        waiting_purpose().confinement};
        precreate(waiting_count(), &purpose);
    }
    send_owed_ready();
}

static pid_t network_process(void)
{
    return current.init;
}

static void terminate(void)
{
    sandbox_terminate(&current);
}

/* Kill the remaining processes of a run whose program has ended. Return 0 if init must be killed for that. */
static int kill_others(void)
{
    if (current.parent == PARENT_INIT)
        return 1; /* init has killed them before its report */
    return (current.parent == PARENT_IMPORTER || zygote_is_running()) && sandbox_kill_run(&current);
}

static void kill_with_init(struct run *run)
{
    struct zygote_exit end;
    struct importer_exit importer_end;
    int status;
    sandbox_kill(&current);
    if (run->ended)
        return;
    if (current.parent == PARENT_IMPORTER) {
        importer_await_exit(current.importer_child, &importer_end);
        note_importer_exit(run, &importer_end);
    } else if (current.parent == PARENT_INIT) {
        run_note_end(run, sandbox_program_has_ended(&current, &status) ? status : SIGKILL);
    } else {
        zygote_await_exit(current.zygote_child, &end);
        note_zygote_exit(run, &end);
    }
}

/* If possible, let init live until the run has been reported, because killing it takes long. */
static void kill_run(struct run *run)
{
    if (!run->ended || !kill_others())
        kill_with_init(run);
    if (!run->report.exec_error)
        run->report.exec_error = sandbox_exec_error(&current);
}

/* ---- after the report --------------------------------------------------------------------------------- */

static void remove_sandbox(struct sandbox *sandbox)
{
    if (sandbox->init)
        sandbox_kill(sandbox);
    sandbox_close(sandbox);
    writable_release_in_flight(); /* no run can reach these descriptors, but they keep memory in use */
}

/* Return how many sandboxes are to wait after a run. Standby processes are large: docs/adr/0036. */
static size_t needed_after(enum kind kind)
{
    return kind == KIND_STANDBY && !follows_closely ? 1 : MAX_WAITING;
}

/* The next run gets another sandbox and can reach nothing of this run, so DONE is usually sent at once. The kernel
 * then removes the old sandbox while a new one is created. If the run's files are large, the sandbox is removed
 * before DONE: otherwise the worker would find the memory of the files still in use. */
static void finish(const struct run *run)
{
    struct sandbox spent = current;
    const struct purpose purpose = {usual_kind(), spent.confinement};
    int is_large = writable_used_bytes(run->dirs) > LARGE_BYTES;
    current.init = 0;
    if (is_large)
        remove_sandbox(&spent);
    wire_send_done(1);
    owes_ready = run->request.prepare_next;
    send_owed_ready();
    wire_flush();
    if (spent.init)
        sandbox_begin_kill(&spent);
    if (run->request.prepare_next)
        precreate(needed_after(purpose.kind), &purpose);
    last_end_us = run_clock_us();
    if (!is_large)
        remove_sandbox(&spent);
}

const struct level sandbox_level = {
    .number = LEVEL_SANDBOX,
    .has_netlink = 1,
    .set_up = set_up,
    .drop_code = stop_importer,
    .take_code = take_code,
    .start = start,
    .watch = watch,
    .serve = serve,
    .network_process = network_process,
    .terminate = terminate,
    .kill_run = kill_run,
    .finish = finish,
};
