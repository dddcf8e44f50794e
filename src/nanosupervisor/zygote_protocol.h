/* Messages between the supervisor (zygote.c) and the zygote (zygote_module.c), over a SOCK_SEQPACKET
 * socket; and between the supervisor (importer.c) and the importer (zygote_importer.c). Integers are little-endian. */
#ifndef ZYGOTE_PROTOCOL_H
#define ZYGOTE_PROTOCOL_H

#include "confine.h"
#include "job.h"

#include <stdint.h>

#define MAX_ZYGOTE_MESSAGE (64 * 1024) /* names of modules and of files */

enum zygote_message {
    /* Supervisor -> zygote. */
    ZYGOTE_FORK = 'F',    /* struct fork_request, with the descriptors below: fork a process into that sandbox */
    ZYGOTE_PRELOAD = 'P', /* names of modules, an empty name, names in the code's directory, each NUL-terminated: import
                             the modules */
    /* Zygote -> supervisor. */
    ZYGOTE_READY = 'R',     /* empty: the zygote has started */
    ZYGOTE_FORKED = 'f',    /* struct forked: the answer to ZYGOTE_FORK */
    ZYGOTE_PRELOADED = 'p', /* struct preloaded: the answer to ZYGOTE_PRELOAD */
    ZYGOTE_ENDED = 'X',     /* struct ended: a forked process has ended */
    /* Supervisor -> importer; also ZYGOTE_FORK, to which it answers with pid 0. */
    IMPORTER_IMPORT = 'I', /* empty: import the installed packages of the code */
    /* Importer -> supervisor. */
    IMPORTER_IMPORTED = 'i', /* struct imported: the answer */
};

/* The descriptors of a ZYGOTE_FORK message: those of the new process, then a pidfd of the sandbox's init; for the
 * importer, of its anchor. */
enum { FORK_INIT = PROCESS_DESCRIPTORS, FORK_DESCRIPTORS };

struct __attribute__((packed)) fork_request {
    char type;
    uint32_t namespaces; /* to enter, as flags of clone(2); 0: none, and the message has no pidfd */
    struct confinement confinement;
};

struct __attribute__((packed)) forked {
    char type;
    int32_t pid; /* the process's number in the container, or a negative errno */
};

struct __attribute__((packed)) preloaded {
    char type;
    uint8_t ok; /* 0: a module failed, or has the name of a file of the code; this zygote must not be used */
};

#define IMPORTED_ALL 1 /* IMPORTS_REUSED */

struct __attribute__((packed)) imported {
    char type;
    uint8_t state; /* enum imports_state in wire.h */
};

struct __attribute__((packed)) ended {
    char type;
    int32_t pid, status; /* the status is that of waitpid(2) */
    uint64_t user_us, system_us;
};

#endif
