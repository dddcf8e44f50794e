/* The network interface of a sandbox. */
#ifndef LOOPBACK_H
#define LOOPBACK_H

/* In init: bring up loopback with the addresses 127.0.0.1 and 127.0.0.2. Exits if that fails. */
void setup_loopback(void);

#endif
