/* See outputs.h, and directory.h for the hazards. */
#define _GNU_SOURCE
#include "outputs.h"
#include "directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define MAX_DEPTH 32
#define MAX_PATH 1024 /* bytes; S3's limit for a whole key; the worker checks the path together with its prefix */
#define CHUNK (64 * 1024)
/* How many names are kept in memory, of a directory and of the directories above it. With the longest names
 * they take 5 MB. In deep trees MIN_NAMES allows almost twice as many names. */
#define MAX_NAMES 16384
#define MIN_NAMES 512 /* of one directory, however deep it is */
#define CROWDED 4096  /* entries of /output; with names of 10 bytes, their REFUSED frames fill the buffer of wire.c */

/* The number of files and bytes that have been sent, and the path of the current entry. */
struct sending {
    const struct run_request *request;
    uint32_t files;
    uint64_t bytes;
    size_t path_length;
    char path[MAX_PATH + 1 + MAX_NAME];
};

static void refuse(const struct sending *sending, enum refusal reason)
{
    uint8_t code = (uint8_t)reason;
    wire_send2(FRAME_REFUSED, &code, 1, sending->path, sending->path_length);
}

/* ---- one file ----------------------------------------------------------------------------------------- */

/* O_NONBLOCK, because a descriptor that is in flight between dead sockets may hold a lease on the file. Without
 * this flag, open() would then wait for 45 s (fcntl(2), lease-break-time). The flag also protects against a
 * FIFO, if the kernel ever shows one as a regular file. */
static int open_file(int directory, const char *name)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int file = openat(directory, name, flags);
    if (file < 0 && errno == EACCES && !fchmodat(directory, name, 0600, 0))
        file = openat(directory, name, flags);
    return file;
}

static void send_content(int file, uint64_t left)
{
    static char chunk[CHUNK];
    while (left) {
        size_t wanted = left < CHUNK ? (size_t)left : CHUNK;
        ssize_t got = read(file, chunk, wanted);
        if (got <= 0) { /* unexpected; the FILE frame has announced the size, so send zeros */
            memset(chunk, 0, wanted);
            got = (ssize_t)wanted;
        }
        wire_send(FRAME_DATA, chunk, (size_t)got);
        left -= (uint64_t)got;
    }
}

static void send_file(struct sending *sending, int directory, const char *name)
{
    struct stat info;
    int file = open_file(directory, name);
    if (file < 0 || fstat(file, &info) || !S_ISREG(info.st_mode)) {
        refuse(sending, REFUSED_UNREADABLE);
    } else {
        uint64_t size = (uint64_t)info.st_size;
        wire_send2(FRAME_FILE, &size, sizeof size, sending->path, sending->path_length);
        send_content(file, size);
        sending->files++;
        sending->bytes += size;
    }
    if (file >= 0)
        close(file);
}

/* ---- the names of a directory, in order and in portions ----------------------------------------------- */

struct names {
    size_t count;
    char *name[];
};

static int by_name(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Sort the names, and free all but the first `most`. */
static void keep_first(struct names *names, size_t most)
{
    qsort(names->name, names->count, sizeof *names->name, by_name);
    while (names->count > most)
        free(names->name[--names->count]);
}

static void free_names(struct names *names)
{
    while (names && names->count)
        free(names->name[--names->count]);
    free(names);
}

/* Append a copy of the name. `room` is the number of names for which there is memory. 0: no memory. */
static int append_name(struct names **names, size_t *room, const char *name)
{
    if ((*names)->count == *room) {
        size_t more = *room ? 2 * *room : 16;
        struct names *larger = realloc(*names, sizeof **names + more * sizeof *larger->name);
        if (!larger)
            return 0;
        *names = larger;
        *room = more;
    }
    char *copy = strdup(name);
    if (copy)
        (*names)->name[(*names)->count++] = copy;
    return copy != NULL;
}

/* Return the first names of a directory that come after `after`, at most `most`, sorted. The caller frees
 * them. NULL: no memory, or the directory cannot be read. */
static struct names *names_after(int directory, const char *after, size_t most)
{
    struct listing listing;
    size_t room = 0;
    struct names *names = calloc(1, sizeof *names);
    const char *name, *limit = NULL; /* names after the limit are not among the first */
    int failed = !names;
    listing_start(&listing, directory);
    while (!failed && (name = listing_next(&listing))) {
        if (strcmp(name, after) <= 0 || (limit && strcmp(name, limit) > 0))
            continue;
        if (names->count == 2 * most) {
            keep_first(names, most);
            limit = names->name[most - 1];
            if (strcmp(name, limit) > 0)
                continue;
        }
        failed = !append_name(&names, &room, name);
    }
    if (failed || listing.error) {
        free_names(names);
        return NULL;
    }
    keep_first(names, most);
    return names;
}

/* ---- the tree ----------------------------------------------------------------------------------------- */

static void send_directory(struct sending *sending, int directory, int depth);

static void send_subdirectory(struct sending *sending, int directory, const char *name, int depth)
{
    fchmodat(directory, name, 0700, 0);
    int below = directory_open(directory, name);
    if (below < 0)
        refuse(sending, REFUSED_UNREADABLE);
    else if (depth >= MAX_DEPTH)
        refuse(sending, REFUSED_DEPTH);
    else
        send_directory(sending, below, depth + 1);
    if (below >= 0)
        close(below);
}

static void send_entry(struct sending *sending, int directory, const char *name, int depth)
{
    const struct run_request *request = sending->request;
    struct stat info;
    size_t before = sending->path_length;
    size_t length = strlen(name);
    if (before)
        sending->path[sending->path_length++] = '/';
    memcpy(sending->path + sending->path_length, name, length); /* the path has MAX_NAME bytes of room for it */
    sending->path_length += length;

    if (sending->path_length > MAX_PATH)
        refuse(sending, REFUSED_DEPTH);
    else if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW))
        refuse(sending, REFUSED_UNREADABLE);
    else if (S_ISDIR(info.st_mode))
        send_subdirectory(sending, directory, name, depth);
    else if (S_ISLNK(info.st_mode))
        refuse(sending, REFUSED_LINK);
    else if (!S_ISREG(info.st_mode))
        refuse(sending, REFUSED_SPECIAL);
    else if (sending->files >= request->output_max_files)
        refuse(sending, REFUSED_COUNT);
    else if ((uint64_t)info.st_size > request->output_max_file_bytes)
        refuse(sending, REFUSED_SIZE);
    else if ((uint64_t)info.st_size > request->output_max_total_bytes - sending->bytes)
        refuse(sending, REFUSED_TOTAL);
    else
        send_file(sending, directory, name);
    sending->path_length = before;
}

static void send_directory(struct sending *sending, int directory, int depth)
{
    static size_t held; /* names in memory, of the directories above */
    size_t most = MAX_NAMES > held ? (MAX_NAMES - held) / 2 : 0, count;
    char last[MAX_NAME] = "";
    if (most < MIN_NAMES)
        most = MIN_NAMES;
    do {
        struct names *names = names_after(directory, last, most);
        if (!names) {
            refuse(sending, REFUSED_UNREADABLE);
            return;
        }
        held += count = names->count;
        for (size_t i = 0; i < count; i++)
            send_entry(sending, directory, names->name[i], depth);
        if (count)
            strcpy(last, names->name[count - 1]);
        free_names(names);
        held -= count;
    } while (count == most);
}

/* Whether there are so many entries that reading them may need more memory than the container has. */
static int is_crowded(int directory)
{
    struct statfs space;
    return fstatfs(directory, &space) || space.f_files - space.f_ffree > CROWDED;
}

void outputs_send(const struct writable_dirs *dirs, const struct run_request *request)
{
    static struct sending sending;
    memset(&sending, 0, sizeof sending);
    sending.request = request;
    int directory = directory_open(dirs->directory[WRITABLE_OUTPUT], ".");
    if (directory < 0) {
        refuse(&sending, REFUSED_UNREADABLE);
        return;
    }
    if (is_crowded(directory))
        wire_flush(); /* send the EXIT frame now: when the worker gets it, it gives the container more memory */
    send_directory(&sending, directory, 1);
    close(directory);
}
