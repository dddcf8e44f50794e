/* The job of a pre-created process, and the socket over which the process receives it. */
#ifndef JOB_H
#define JOB_H

#include <stdint.h>

/* The socket's descriptor in the pre-created process. */
#define JOB_SOCKET 3

/* Pre-created process -> supervisor; a message is one byte. */
enum job_message {
    JOB_CONFINED = 'n', /* carries the listener of the process's filter (netlink.h); not sent if there is no listener */
    JOB_READY = 'r',    /* the process waits for its job */
};

/* Whether the code's directory has a file or directory with the name of a module that the zygote has imported.
 * Supervisor -> process of the zygote, one byte: after JOB_READY, when the code is in the container's /work. To
 * NAMES_UNKNOWN the process answers with one of the other two. It then lists the directory, whose time grows with the
 * number of names. So it does that before its job arrives, and before the code is mounted, because a listing of an
 * overlay takes several times as long. */
enum names {
    NAMES_UNKNOWN = '?',
    NAMES_FREE = 'f',
    NAMES_TAKEN = 't',
};

/* Supervisor -> pre-created process: this header, then `length` bytes of NUL-terminated strings: the
 * arguments, then the environment. If the program cannot be executed, the process answers with a u32 errno
 * and ends. A process of the zygote of Python does not answer: it writes the reason to standard error. */
struct __attribute__((packed)) job {
    uint32_t length;
    uint32_t argument_count;
    uint32_t environment_count;
};

/* The descriptors that a pre-created process gets from its parent. */
enum { PROCESS_JOB, PROCESS_IN, PROCESS_OUT, PROCESS_ERR, PROCESS_DESCRIPTORS };

#endif
