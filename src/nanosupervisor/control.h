/* Messages between the supervisor and a sandbox's init, over a SOCK_SEQPACKET socket. */
#ifndef CONTROL_H
#define CONTROL_H

#include <stdint.h>

/* Supervisor -> init; a message is one byte. */
enum command {
    COMMAND_ATTACH_CODE = 'A',   /* mount the code; init answers REPORT_ATTACHED */
    COMMAND_SERVE_NETLINK = 'N', /* with the listener of the run's filter: serve its calls (netlink.h) */
    COMMAND_TERMINATE = 'T',     /* send SIGTERM to every process of the run */
    COMMAND_KILL_RUN = 'K',      /* kill every process of the run; init answers REPORT_RUN_KILLED */
};

/* Init -> supervisor. */
enum report_type {
    REPORT_MADE = 'R', /* with descriptors: the writable directories, then the listening sockets that could be bound;
                          value: bit n is set if the socket of address n is among them */
    REPORT_ATTACHED = 'A',
    REPORT_PROGRAM_ENDED = 'X', /* value: the wait status of the program that init forked. No process of the run
                                   is left */
    REPORT_RUN_KILLED = 'G',
    REPORT_ERROR = 'E', /* value: errno of the step that failed. The sender exits: init, or the process that init has
                           forked and that is not confined yet */
};

struct report {
    char type; /* enum report_type */
    int32_t value;
    char step[48];
};

#endif
