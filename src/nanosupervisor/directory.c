/* See directory.h. */
#define _GNU_SOURCE
#include "directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* An entry as getdents64(2) writes it. */
struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

int directory_open(int parent, const char *name)
{
    return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

void listing_start(struct listing *listing, int directory)
{
    listing->directory = directory;
    listing->error = lseek(directory, 0, SEEK_SET) ? errno : 0;
    listing->at = listing->length = 0;
}

const char *listing_next(struct listing *listing)
{
    while (!listing->error) {
        if (listing->at == listing->length) {
            long got = syscall(SYS_getdents64, listing->directory, listing->buffer, sizeof listing->buffer);
            if (got < 0)
                listing->error = errno;
            if (got <= 0)
                return NULL;
            listing->at = 0;
            listing->length = (size_t)got;
        }
        const struct entry *entry = (const struct entry *)(listing->buffer + listing->at);
        listing->at += entry->length;
        if (strcmp(entry->name, ".") && strcmp(entry->name, ".."))
            return entry->name;
    }
    return NULL;
}
