/* Doors: sockets in the network that a program sees, at which the agent listens and accepts.
 *
 * A socket belongs to the network namespace it was made in, whoever holds it. So whoever is in that namespace before
 * the program makes and binds it, the supervisor hands it to the agent over a connection that serves for nothing else,
 * and keeps no copy. Nobody listens on it but the agent, while a run may go there. */
#ifndef DOORS_H
#define DOORS_H

#include "wire.h"

#include <stddef.h>
#include <stdint.h>

/* Those that are open, by their number in the configuration; -1 where one is not. */
struct doors {
    int socket[MAX_DOORS];
};

/* Connect to where the agent takes them. Without it there are none: an agent may not want any, and a kernel of its own
 * (gVisor) can hand over no descriptor that means anything outside. */
void doors_connect(const char *path);
/* What doors there are to be, from now on. Exits when there are too many. */
void doors_configure(const struct door *wanted, size_t count);
/* Make and bind them in the network of the caller. One that cannot be had is not there. */
void doors_open(struct doors *doors);
/* Hand them to the agent, in place of those of before, and close them here. */
void doors_hand_over(struct doors *doors);
void doors_close(struct doors *doors);

#endif
