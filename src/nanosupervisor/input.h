/* A program's standard input: a pipe with the payload in it, and then its end. */
#ifndef INPUT_H
#define INPUT_H

#include <stddef.h>

struct input {
    int to; /* the pipe's write end; -1: all is written, or nobody reads any more */
    const char *at;
    size_t left;
};

/* Begin to write the payload, which must stay where it is until the run has ended. Takes over `to`. */
void input_open(struct input *input, int to, const void *payload, size_t length);
/* Write what the pipe has room for; at the end, or when nobody can read it, close the pipe. */
void input_feed(struct input *input);
void input_close(struct input *input);

#endif
