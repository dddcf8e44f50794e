/* The payload of a run, which the program finds in a file and on its standard input. */
#ifndef INPUT_H
#define INPUT_H

#include "writable.h"

#include <stddef.h>

/* Write the payload to /input/payload.json; 0 or an errno. */
int input_write_file(const struct writable_dirs *dirs, const void *payload, size_t length);

/* Standard input: a pipe with the payload in it, and then its end. */
struct input {
    int to; /* the pipe's write end; -1: closed, because all is written or no process can read it */
    const char *at;
    size_t left;
};

/* Start to write the payload, which must stay in memory until the run has ended. Takes over `to`. */
void input_open(struct input *input, int to, const void *payload, size_t length);
/* Write as much as the pipe has room for. When all is written, or no process can read it, close the pipe. */
void input_feed(struct input *input);
void input_close(struct input *input);

#endif
