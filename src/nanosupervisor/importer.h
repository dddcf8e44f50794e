/* The supervisor's side of the importer: an interpreter in a sandbox of its function that has imported installed packages
 * of the code. Each run is a fork of it, in a sandbox of its own. Its own side is zygote_importer.c and importer.py.
 *
 * A container has an importer if its binding asks for it (PREPARE in wire.h). The zygote forks the importer into a sandbox
 * like that of a run, but without a network. There the importer imports the packages and compares its state with that
 * before. If a fork of it would not be like a new interpreter, the container does without it: enum imports_state.
 *
 * The packages are untrusted code, so the importer is untrusted for ever. It has no capability. Everything that it says
 * may be a lie, so the supervisor waits for it with a time limit and admits a fork as a run's program only after it has
 * looked at the process. A lie then concerns only runs of the same function in this container.
 *
 *   supervisor  creates the sandbox of a run inside the importer's process namespace (importer_namespaces.h), and asks
 *               the importer to fork
 *   importer    forks a process that enters the sandbox by setns(2), forks the run's process, and exits. The init of the
 *               importer's sandbox becomes the parent of the run's process: it reaps it and reports its end
 *   process     waits for its job like a process of the zygote */
#ifndef IMPORTER_H
#define IMPORTER_H

#include "confine.h"
#include "importer_namespaces.h"
#include "job.h"
#include "sandbox_init.h"
#include "wire.h"

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The end of a run's program. */
struct importer_exit {
    int status; /* as from waitpid(2) */
    int is_orphan; /* the init of the importer's sandbox has ended, so the status is not known */
    uint64_t user_us, system_us;
};

/* The number of descriptors that importer_watch() adds at most. */
#define IMPORTER_EVENTS 3

/* Start the importer, and let it import. Return the state. If it is not IMPORTS_REUSED, there is no importer. The code
 * must be in the container's /work. */
enum imports_state importer_start(const struct work_limits *work, const struct confinement *confinement);
/* The state since the last importer_start(); IMPORTS_OFF after importer_stop(). */
enum imports_state importer_state(void);
/* Whether the importer can fork. */
int importer_is_running(void);
/* Kill the importer and everything in its sandbox, also the sandboxes of its runs. Discard these first. */
void importer_stop(void);
/* The same for an importer that has been given up, if there is one. importer_state() keeps the reason. */
void importer_remove(void);

/* Write the descriptors that become readable when importer_receive() must be called; return their number. */
size_t importer_watch(struct pollfd events[IMPORTER_EVENTS]);
/* Receive the messages that have arrived. */
void importer_receive(void);
/* Give the importer up if the time limit of importer_limit_creation() has passed, and return whether it has. Call this
 * after all messages have been received, because the supervisor itself may be late. */
int importer_is_late(void);

/* Begin to create an init for the sandbox of a run, which runs init_main(). Return 0, or -1 with errno. */
int importer_begin_init(struct sandbox_plan *plan, struct init_creation *creation);
/* Sandboxes for runs are being created, and one of them has come further; or 0: none is being created. The importer is
 * given up if the next step takes too long: its packages can stop every process that makes a sandbox. */
void importer_limit_creation(int is_creating);
/* Ask the importer to fork a process into the sandbox of this anchor. `job` is the supervisor's end of its job socket. */
void importer_request_fork(int job, const int process[PROCESS_DESCRIPTORS], int anchor,
                           const struct confinement *confinement);
/* Whether the process that has sent JOB_READY is a program's process in the sandbox with this process namespace: without
 * capabilities, filtered, and a child of the init of the importer's sandbox. `child` gets its number there. */
enum admission { ADMISSION_PENDING, ADMISSION_GRANTED, ADMISSION_REFUSED };
enum admission importer_admit(int job, uint64_t pid_namespace, pid_t *child);
/* Let the init of a run's sandbox serve the run's netlink calls. */
int importer_filter_listener(void);

/* The creation of a run's sandbox has failed: the importer forks no more. */
void importer_note_failure(void);

/* Take the end of a run's program; 0 if it has not been reported. */
int importer_take_exit(pid_t child, struct importer_exit *end);
/* Wait for the end of a program that was killed. */
void importer_await_exit(pid_t child, struct importer_exit *end);
/* The end of this program is of no interest. */
void importer_forget(pid_t child);
/* Wait until the killed init of a run's sandbox has ended. If other processes of the importer prevent that, kill the
 * importer's sandbox. */
void importer_await_end(int init_pidfd);

#endif
