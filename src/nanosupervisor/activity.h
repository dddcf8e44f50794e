/* What the processes of a run do when its time is over: facts for the hint of the result. */
#ifndef ACTIVITY_H
#define ACTIVITY_H

#include <stdint.h>
#include <sys/types.h>

/* Return the flags EXIT_LISTENING, EXIT_COMPUTING and EXIT_WAITING that are true. This takes a few milliseconds.
 *
 * `network_process` is a process in the network of the run. */
uint32_t activity_flags(pid_t network_process);

/* Read the beginning of a file in /proc/net of a process's network. If that fails, the text is empty. */
void activity_read_network_file(pid_t process, const char *name, char *text, size_t room);

#endif
