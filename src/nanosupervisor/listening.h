/* Listening sockets: sockets in the network of a run, on which the worker listens and accepts.
 *
 * A socket belongs to the network namespace in which it was created, whichever process holds it. A process
 * inside the namespace creates and binds the sockets before the program starts. The supervisor sends them
 * to the worker over a separate connection, and keeps no copy. The worker listens on them while the run
 * may use the network. */
#ifndef LISTENING_H
#define LISTENING_H

#include "wire.h"

#include <stddef.h>
#include <stdint.h>

/* One set: a socket for each configured address, in the order of the configuration; -1 if the address could
 * not be bound. */
struct listening_sockets {
    int socket[MAX_LISTENING_SOCKETS];
};

/* Connect to the worker's socket for listening sockets. If that fails, runs have no network. This is not an
 * error: some workers want no such sockets, and under gVisor a container cannot send descriptors to the host. */
void listening_connect(const char *path);
/* Set the addresses of every later set. Exits if there are too many. */
void listening_configure(const struct listening_address *addresses, size_t count);
/* Create and bind one set in the network of the calling process. */
void listening_open(struct listening_sockets *sockets);
/* Send a set to the worker, and close it here. The worker then closes the previous set. */
void listening_hand_over(struct listening_sockets *sockets);
/* Whether a configured address, at which the worker may listen, is this one. The bytes of `address` are in network
 * order. */
int listening_is_configured(uint32_t address, uint16_t port);
void listening_close(struct listening_sockets *sockets);

#endif
