/* Messages between the supervisor and a sandbox's init, over a SOCK_SEQPACKET socket. */
#ifndef CONTROL_H
#define CONTROL_H

#include <stdint.h>

/* Supervisor -> init: struct command_message. */
enum command {
    COMMAND_ATTACH_CODE = 'A',   /* mount the code; init answers REPORT_ATTACHED */
    COMMAND_SERVE_NETLINK = 'N', /* with the listener of the run's filter: serve its calls (netlink.h) */
    COMMAND_TERMINATE = 'T',     /* send SIGTERM to every process of the run */
    COMMAND_KILL_RUN = 'K',      /* kill every process of the run; init answers REPORT_RUN_KILLED */
    /* In the importer's sandbox: */
    COMMAND_STOP_NETLINK = 'Q', /* close that listener; init answers REPORT_NETLINK_STOPPED */
    COMMAND_WATCH = 'W',        /* the process `pid` is a run's program: report its end with REPORT_CHILD_ENDED */
};

struct command_message {
    char command; /* enum command */
    int32_t pid;  /* as init sees it */
};

/* Init -> supervisor. */
enum report_type {
    REPORT_MADE = 'R', /* with descriptors: the writable directories, then the listening sockets that could be bound, then,
                          in a sandbox for a run of the importer, a pidfd of the anchor (anchor.h);
                          value: bit n is set if the socket of address n is among them */
    REPORT_ATTACHED = 'A',
    REPORT_PROGRAM_ENDED = 'X', /* value: the wait status of the program that init forked. No process of the run
                                   is left */
    REPORT_RUN_KILLED = 'G',
    REPORT_NETLINK_STOPPED = 'Q',
    REPORT_CHILD_ENDED = 'C', /* value: the wait status of the process `pid`, which the importer has forked */
    REPORT_ERROR = 'E', /* value: errno of the step that failed. The sender exits: init, or the process that init has
                           forked and that is not confined yet */
};

struct report {
    char type; /* enum report_type */
    int32_t value;
    char step[48];
    /* REPORT_CHILD_ENDED */
    int32_t pid;
    uint64_t user_us, system_us;
    /* REPORT_MADE: the inode number of the sandbox's process namespace */
    uint64_t pid_namespace;
};

#endif
