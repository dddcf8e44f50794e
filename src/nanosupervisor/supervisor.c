/* nanosupervisor: runs the programs of a container, one at a time, and removes everything that a program leaves
 * behind.
 *
 * The container
 * -------------
 * The container has a read-only root, its own user id, no network and no capabilities. Its processes can
 * write only to small tmpfs mounts: the writable directories. The worker mounts one directory into the
 * container, read-only: /slot. That directory has sockets. When the container belongs to a function, it
 * also has the function's code (/slot/code, unpack.h) or built program (/slot/program).
 *
 * The processes, at the sandbox level
 * -----------------------------------
 *   process              forked by           what it owns and does
 *   launcher             Docker              process 1 of the container: starts the supervisor, and makes the container
 *                                            generic again (launcher.h)
 *   trial                launcher            at the start: creates one sandbox, to find out whether the host allows
 *                                            it, and exits
 *   supervisor           launcher            the sockets to the worker, the run, and a descriptor of each writable
 *                                            directory of the container and of the sandbox
 *   zygote               supervisor          in the Python image, an interpreter that has started already; in the
 *                                            Node.js image, one that has only loaded its libraries. Forks a process
 *                                            into each sandbox and reaps it
 *   init                 supervisor          process 1 of one sandbox: makes its mounts and its network, kills and reaps
 *                                            its processes
 *   importer             zygote              only for functions that ask for it: an interpreter in its own sandbox that
 *                                            has imported the function's packages; forks a process into each sandbox
 *   pre-created process  init or the zygote  one in each sandbox, confined: waits for one job and becomes the program
 *   the others           the program         none of them outlives the run; init reaps them
 *
 * Normally two sandboxes exist: one waits for the next run, the other contains the current run or waits for the run
 * after the next (waiting.h). After a run three exist for a short time, until the old one has been removed.
 *
 * At the shared level there is neither launcher, zygote nor init: the supervisor is process 1, and forks each program
 * itself, in the container. The worker asks for the sandbox level by the socket /slot/launcher.sock. If the host allows
 * no sandboxes, process 1 becomes the supervisor of the shared level, and reports why.
 *
 * The frames (wire.h); `->` is followed by the frames that the supervisor answers
 * ------------------------------------------------------------------------------
 *   start      connect to /slot/agent.sock and /slot/listening.sock: the worker accepts one connection at each, and
 *              then removes the sockets. Send HELLO
 *   CONFIGURE  report the isolation level -> LEVEL; get ready for the first run -> READY
 *   PREPARE    make the code in /work, for the next run -> READY
 *   RUN        start the program, and watch it to its end -> EXIT, STDOUT, STDERR; send the files in /output -> FILE,
 *              DATA, REFUSED; remove everything that the run has left -> DONE; get ready for the next run -> READY
 *   KILL       during a run: end it now
 *   FOLLOW     during a run: send its output while it runs, or stop sending it (follow.h) -> LIVE
 *
 * A run ends when its program ends. Its other processes are then killed. When the worker closes the
 * connection, the supervisor exits, and the whole container ends with it.
 *
 * At both levels the program runs under the supervisor's own user id (docs/adr/0003), because a container
 * without capabilities cannot have another one. filter.c explains why the program cannot harm the
 * supervisor.
 *
 * Read next: launcher.h; wire.h; run.c, for one run; level.h, with level_sandbox.c and level_shared.c; waiting.h; sandbox.c, and
 * sandbox_init.c for the inside of a sandbox; zygote.c; importer.h; confine.c and filter.c; then outputs.c,
 * writable.c, listening.h and netlink.h. */
#define _GNU_SOURCE
#include "launcher.h"
#include "anchor.h"
#include "level.h"
#include "listening.h"
#include "run.h"
#include "sandbox.h"
#include "unpack.h"
#include "wire.h"
#include "writable.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static const struct level *level;
static int is_launched;       /* by the launcher, for the sandbox level */
static char why_shared[128]; /* why the host allows no sandboxes */
static int has_code;         /* whether the container's /work contains code */

static void choose_level(const struct configuration *configuration)
{
    level = is_launched ? &sandbox_level : &shared_level;
    errno = 0;
    if (level->number > configuration->highest_level)
        die("the worker wants no sandboxes, but has a socket for the launcher");
    wire_send2(FRAME_LEVEL, &level->number, 1, why_shared, strlen(why_shared));
    wire_flush();
}

static void configure(const uint8_t *frame, size_t length)
{
    struct configuration configuration;
    const struct ready_report ready = {0};
    if (length < sizeof configuration)
        die("short configuration");
    memcpy(&configuration, frame, sizeof configuration);
    const uint8_t *addresses = frame + sizeof configuration;
    const uint8_t *modules = addresses + configuration.listening_count * sizeof(struct listening_address);
    if (modules > frame + length)
        die("short configuration");
    const struct settings settings = {
        .confinement = {configuration.file_size_bytes, configuration.open_files, 0},
        .work = {configuration.work_bytes, configuration.work_files},
        .modules = (const char *)modules,
        .modules_length = (size_t)(frame + length - modules),
    };
    choose_level(&configuration);
    listening_configure((const struct listening_address *)addresses, configuration.listening_count);
    level->set_up(&settings);
    wire_send_ready(&ready);
}

static void prepare(const uint8_t *frame, size_t length)
{
    if (!length)
        die("short preparation");
    const struct new_code code = {
        .limits_changed = frame[0] & PREPARE_LIMITS_CHANGED,
        .modules = (const char *)frame + 1,
        .modules_length = length - 1,
        .reuses_imports = frame[0] & PREPARE_REUSE,
    };
    level->drop_code(); /* a package that an importer has imported could change the new code */
    if (has_code && !writable_wipe_one(WRITABLE_WORK)) {
        errno = 0;
        die("the previous code cannot be removed");
    }
    has_code = 1;
    struct ready_report report = unpack_slot_code(container_dirs.directory[WRITABLE_WORK]);
    if (!report.error)
        report.imports = level->take_code(&code);
    wire_send_ready(&report);
}

static void set_up_process(void)
{
    sigset_t blocked;
    errno = 0;
    if (!is_launched && getpid() != 1)
        die("must be process 1 of a container, because it ends a run by kill(-1)");
    /* Not dumpable: a run, which has the same user id, can neither trace this process nor read its memory,
     * descriptors and environment. No signal handlers: if a process signals process 1 of its own namespace,
     * and process 1 has no handler, the kernel drops the signal. This includes SIGKILL and SIGSTOP.
     * pid_namespaces(7). A run in a sandbox sees no process of the container, so it cannot signal the supervisor. */
    prctl(PR_SET_DUMPABLE, 0);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGCHLD);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void connect_to_worker(void)
{
    const uint32_t version = PROTOCOL_VERSION;
    wire_connect("/slot/agent.sock");
    listening_connect("/slot/listening.sock");
    wire_send(FRAME_HELLO, &version, sizeof version);
    wire_flush();
}

/* Wait until the next frame arrives. Meanwhile the level gets ready for the next runs. */
static void wait_for_frame(void)
{
    for (;;) {
        struct pollfd events[1 + LEVEL_EVENTS] = {{wire_fd(), POLLIN, 0}};
        size_t count = 1 + (level ? level->watch(events + 1) : 0);
        if (poll(events, count, -1) < 0 && errno != EINTR)
            die("poll");
        for (size_t i = 1; i < count; i++)
            if (events[i].revents) {
                level->serve(NULL);
                break;
            }
        if (events[0].revents)
            return;
    }
}

static void serve_frame(void)
{
    uint8_t *payload;
    size_t length;
    enum frame_type type = wire_receive(&payload, &length);
    if (!level && type != FRAME_CONFIGURE) {
        errno = 0;
        die("a frame before the configuration");
    }
    switch (type) {
    case FRAME_CONFIGURE:
        configure(payload, length);
        break;
    case FRAME_PREPARE:
        prepare(payload, length);
        break;
    case FRAME_RUN:
        run_serve(level, payload, length);
        break;
    case FRAME_KILL: /* it arrived after the end of its run */
    case FRAME_FOLLOW:
        break;
    default:
        errno = 0;
        die("unknown frame");
    }
    free(payload);
}

/* As process 1: become the launcher if the worker wants sandboxes and the host allows them. */
static void try_to_launch(void)
{
    /* The trial needs little room: it runs no program. */
    static const struct work_limits trial = {.bytes = 1u << 20, .files = 64};
    if (!launcher_connect("/slot/launcher.sock"))
        return;
    if (sandbox_is_possible(&trial, why_shared, sizeof why_shared))
        launcher_main();
    launcher_disconnect();
}

int main(int argc, char **argv)
{
    if (argc == 1 && !strcmp(argv[0], ANCHOR_NAME))
        anchor_main();
    is_launched = argc == 2 && !strcmp(argv[1], SUPERVISOR_ARGUMENT) && getpid() != 1;
    set_up_process();
    writable_open_container();
    if (is_launched)
        prctl(PR_SET_CHILD_SUBREAPER, 1); /* the orphans of the zygote become children of the supervisor */
    else
        try_to_launch();
    connect_to_worker();
    for (;;) {
        wait_for_frame();
        serve_frame();
    }
}
