/* Listening sockets: sockets in the network of a run, on which the worker listens and accepts.
 *
 * A socket belongs to the network namespace in which it was created, whichever process holds it. A process
 * inside the namespace creates and binds the sockets before the program starts. The supervisor hands them
 * to the worker over a connection for this purpose only and keeps no copy. The worker listens on them
 * while the run may use the network. */
#ifndef LISTENING_H
#define LISTENING_H

#include "wire.h"

#include <stddef.h>
#include <stdint.h>

/* One set: the descriptor of each configured address, in the order of the configuration; -1 if it could
 * not be bound. */
struct listening_sockets {
    int socket[MAX_LISTENING_SOCKETS];
};

/* Connect to the worker's socket for listening sockets. If that fails, runs have no network: a worker may
 * want no such sockets, and a kernel of its own (gVisor) cannot hand descriptors to a process outside. */
void listening_connect(const char *path);
/* Set the addresses of every later set. Exits if there are too many. */
void listening_configure(const struct listening_address *addresses, size_t count);
/* Create and bind one set in the network of the calling process. */
void listening_open(struct listening_sockets *sockets);
/* Hand a set to the worker, which then closes the previous one; then close the set here. */
void listening_hand_over(struct listening_sockets *sockets);
void listening_close(struct listening_sockets *sockets);

#endif
