/* See input.h. A pipe holds 64 KiB, but a payload has up to 1 MiB. The rest is written while the program
 * reads. */
#define _GNU_SOURCE
#include "input.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define PAYLOAD_NAME "payload.json"

int input_write_file(const struct writable_dirs *dirs, const void *payload, size_t length)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC;
    int file = openat(dirs->directory[WRITABLE_INPUT], PAYLOAD_NAME, flags, 0644);
    if (file < 0)
        return errno;
    const char *at = payload;
    int error = 0;
    while (length && !error) {
        ssize_t written = write(file, at, length);
        if (written < 0)
            error = errno == EINTR ? 0 : errno;
        else {
            at += written;
            length -= (size_t)written;
        }
    }
    close(file);
    return error;
}

void input_open(struct input *input, int to, const void *payload, size_t length)
{
    *input = (struct input){to, payload, length};
    fcntl(to, F_SETFL, O_NONBLOCK); /* of this end only */
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
            input->left = 0; /* EPIPE: no process has the other end any more */
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
