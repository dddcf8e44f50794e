/* The files that a run has left in /output. */
#ifndef OUTPUTS_H
#define OUTPUTS_H

#include "wire.h"
#include "writable.h"

/* Send every regular file below /output, in the order of names, as FILE and DATA frames. For each other entry,
 * and each file over a limit, send a REFUSED frame with the reason. Call this only after every process of the
 * run has ended, so that no file changes while it is read. */
void outputs_send(const struct writable_dirs *dirs, const struct run_request *request);

#endif
