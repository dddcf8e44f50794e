/* An isolation level: the way in which a run is separated from the next run and from the supervisor. */
#ifndef LEVEL_H
#define LEVEL_H

#include "confine.h"
#include "run.h"
#include "sandbox_mounts.h"
#include "wire.h"

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The worker's configuration for all runs of this container. */
struct settings {
    struct confinement confinement; /* of pre-created processes */
    struct work_limits work;
    const char *modules; /* NUL-terminated names, which the zygote imports */
    size_t modules_length;
};

/* New code for the runs of this container. It is in the container's /work. */
struct new_code {
    int limits_changed;  /* whether the memory limit has changed, which an interpreter reads when it starts */
    const char *modules; /* NUL-terminated names, which the code imports */
    size_t modules_length;
    int reuses_imports; /* import the installed packages of the code once, for all runs (importer.h) */
};

/* The number of descriptors that watch() writes at most. */
#define LEVEL_EVENTS 12

/* The operations of a level. The supervisor serves one run at a time. */
struct level {
    uint8_t number; /* LEVEL_… in wire.h */
    /* Whether programs may create netlink sockets, whose memory must be watched. */
    int has_netlink;
    /* Make everything ready for the first run. Afterwards the memory of the settings is freed. */
    void (*set_up)(const struct settings *settings);
    /* End every process that belongs to the previous code. Called before the new code is written. */
    void (*drop_code)(void);
    /* Make the next run use this code. Return whether its packages are imported once. */
    enum imports_state (*take_code)(const struct new_code *code);
    /* Start the run's program; return 0 or an errno. It calls run_note_start(), run_write_payload() and
     * run_open_streams(). */
    uint32_t (*start)(struct run *run);
    /* Write the descriptors to `events` that become readable when serve() must be called. Return their number. */
    size_t (*watch)(struct pollfd events[LEVEL_EVENTS]);
    /* During a run: call run_note_end() if the program has ended. Between runs, `run` is NULL. At both times: go on
     * getting ready for the next runs; when ready, send the READY that finish() has left out. */
    void (*serve)(struct run *run);
    /* A process in the network of the run. */
    pid_t (*network_process)(void);
    /* Send SIGTERM to every process of the run. */
    void (*terminate)(void);
    /* Kill every process of the run, and reap the program. */
    void (*kill_run)(struct run *run);
    /* Remove everything that the run has left, and send DONE. If the request says that another run will
     * follow, get ready for it and send READY, or leave that to serve(). Called after the report of the run. */
    void (*finish)(const struct run *run);
};

/* The program runs in a sandbox. When the sandbox's init is killed, the kernel kills every process in the
 * sandbox, and removes its mounts with their files. */
extern const struct level sandbox_level;
/* Where the host does not allow sandboxes, the program runs in the container itself. As process 1 of the
 * container the supervisor kills all processes, wipes the writable directories, and checks that they are
 * as empty as at the start. */
extern const struct level shared_level;

#endif
