/* The launcher: process 1 of a container at the sandbox level. It starts the supervisor, and can make the container
 * generic again.
 *
 * The supervisor parses data that untrusted programs have written. So a program may find a fault in the supervisor and
 * take it over. The launcher never reads such data, and shares no memory with the supervisor. It has one connection to
 * the worker, which no other process has. When the worker asks for it, the launcher kills every other process,
 * empties the writable directories, and looks for residue (residue.h). Then it starts a new supervisor from the
 * read-only file. The worker checks from outside that the launcher is alone in the container.
 *
 * A process with the same user id can change the launcher only by setting its limits, its priority and its CPUs. These
 * count as residue. It cannot trace the launcher, because the launcher is not dumpable, and it cannot signal it,
 * because the launcher is process 1 and has no signal handlers. */
#ifndef LAUNCHER_H
#define LAUNCHER_H

/* The argument with which the launcher executes the supervisor. */
#define SUPERVISOR_ARGUMENT "supervisor"

/* Messages over a SOCK_SEQPACKET socket; the worker's end is src/nanoagent/supervisor/launcher.py. */
enum launcher_message {
    /* worker -> launcher, one byte */
    LAUNCHER_CLEAN = 'C', /* kill every other process, empty the directories, look for residue: CLEAN or RESIDUE */
    LAUNCHER_START = 'S', /* start a supervisor; only after LAUNCHER_IS_CLEAN */

    /* launcher -> worker */
    LAUNCHER_IS_CLEAN = 'c',   /* one byte: no residue was found, and no other process exists */
    LAUNCHER_HAS_RESIDUE = 'r' /* followed by a text: what was found. The container must be removed */
};

/* Connect to the worker's socket for the launcher. Return 0 if the worker wants no launcher. */
int launcher_connect(const char *path);
/* Close the connection, because the host allows no sandboxes. */
void launcher_disconnect(void);
/* Start the supervisor, and serve the worker. If the supervisor or the worker ends, the container ends. */
__attribute__((noreturn)) void launcher_main(void);

#endif
