/* See input.h. A pipe holds 64 KiB, a payload has up to 1 MiB: the rest is written as the program reads. */
#define _GNU_SOURCE
#include "input.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

void input_open(struct input *input, int to, const void *payload, size_t length)
{
    *input = (struct input){to, payload, length};
    fcntl(to, F_SETFL, O_NONBLOCK); /* of this end alone */
    input_feed(input);
}

void input_feed(struct input *input)
{
    while (input->to >= 0 && input->left) {
        ssize_t written = write(input->to, input->at, input->left);
        if (written > 0) {
            input->at += written;
            input->left -= (size_t)written;
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            input->left = 0; /* nobody has the other end any more */
        }
    }
    input_close(input);
}

void input_close(struct input *input)
{
    if (input->to >= 0)
        close(input->to);
    input->to = -1;
}
