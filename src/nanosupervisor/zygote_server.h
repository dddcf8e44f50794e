/* The zygote's own side of zygote_protocol.h, the same for every language: it forks a process into each
 * sandbox, and reports the end of each. A forked process is confined before it returns to its language's code. */
#ifndef ZYGOTE_SERVER_H
#define ZYGOTE_SERVER_H

#include "zygote_protocol.h"

#include <stddef.h>

struct zygote_request {
    char bytes[MAX_ZYGOTE_MESSAGE + 1]; /* one more, so that the receiver can end the last name */
    size_t length;
    int descriptors[FORK_DESCRIPTORS];
    size_t descriptor_count;
};

/* What the language does at a fork; NULL: nothing. The last two are called in the process that they name. */
struct zygote_hooks {
    void (*before_fork)(void);
    void (*after_fork_in_zygote)(void);
    void (*after_fork_in_process)(void);
};

/* Make this process a zygote. Call it once, while the process has one thread. */
void zygote_set_up(void);
/* Send a message to the supervisor. Exit if the supervisor has ended. */
void zygote_answer(const void *message, size_t size);
/* Serve all ZYGOTE_FORK messages. Return 1 when a ZYGOTE_PRELOAD has arrived; its text is in the request. Return 0
 * in each new process. It is confined, and has the job socket as descriptor 3. */
int zygote_serve(struct zygote_request *request, const struct zygote_hooks *hooks);

/* For the importer, which serves its messages by itself (zygote_importer.c): receive the next message. Exit if the
 * supervisor has ended. */
void zygote_receive(struct zygote_request *request);
/* In a forked process: take the descriptors of a run, close all others, receive all signals, and leave the zygote's
 * directory. */
void zygote_become_run(const int *descriptors);
/* Exit from a forked process that could not enter its sandbox or confine itself. */
__attribute__((noreturn)) void zygote_fail(const char *step);

#endif
