/* See writable.h. */
#define _GNU_SOURCE
#include "writable.h"
#include "directory.h"
#include "wire.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define MAX_SEARCH_DEPTH 32
#define EMPTY_ATTEMPTS 40
#define EMPTY_PAUSE_US 5000

const char *const writable_path[WRITABLE_COUNT] = {
    [WRITABLE_WORK] = WORK_DIR,   [WRITABLE_TMP] = "/tmp",      [WRITABLE_OUTPUT] = OUTPUT_DIR,
    [WRITABLE_INPUT] = INPUT_DIR, [WRITABLE_SHM] = "/dev/shm",
};

struct writable_dirs container_dirs;
static struct statfs empty[WRITABLE_COUNT]; /* of the container's directories, at the start */

void writable_open_container(void)
{
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        container_dirs.directory[i] = directory_open(AT_FDCWD, writable_path[i]);
        if (container_dirs.directory[i] < 0 || fstatfs(container_dirs.directory[i], &empty[i]))
            die("cannot open %s", writable_path[i]);
    }
}

/* ---- how full they are -------------------------------------------------------------------------------- */

int writable_is_full(const struct writable_dirs *dirs)
{
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        struct statfs space;
        if (!fstatfs(dirs->directory[i], &space) && space.f_blocks &&
            (!space.f_bavail || (space.f_files && !space.f_ffree)))
            return 1;
    }
    return 0;
}

uint64_t writable_used_bytes(const struct writable_dirs *dirs)
{
    uint64_t used = 0;
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        struct statfs space;
        if (!fstatfs(dirs->directory[i], &space))
            used += (uint64_t)(space.f_blocks - space.f_bfree) * (uint64_t)space.f_bsize;
    }
    return used;
}

static int is_before(const struct timespec *time, const struct timespec *other)
{
    return time->tv_sec != other->tv_sec ? time->tv_sec < other->tv_sec : time->tv_nsec < other->tv_nsec;
}

/* Compare both times, because a file of the code may have been copied in the clock tick in which the run began.
 * Its change time is the time of the copy, but its modification time is from the zip. */
static int has_changed(const struct stat *info, const struct timespec *since)
{
    return !is_before(&info->st_ctim, since) && !is_before(&info->st_mtim, since);
}

/* Search one directory for writable_has_file_of(), and close it. */
static int has_file_of(int directory, uint64_t bytes, const struct timespec *since, int depth)
{
    struct listing listing;
    const char *name;
    int found = 0;
    listing_start(&listing, directory);
    while (!found && (name = listing_next(&listing))) {
        struct stat info;
        if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW))
            continue;
        if (S_ISREG(info.st_mode))
            found = (uint64_t)info.st_size >= bytes && has_changed(&info, since);
        else if (S_ISDIR(info.st_mode) && depth < MAX_SEARCH_DEPTH) {
            int below = directory_open(directory, name);
            if (below >= 0)
                found = has_file_of(below, bytes, since, depth + 1);
        }
    }
    close(directory);
    return found;
}

int writable_has_file_of(const struct writable_dirs *dirs, uint64_t bytes, uint64_t payload_bytes,
                         const struct timespec *since)
{
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        int directory = directory_open(dirs->directory[i], ".");
        /* The payload was written in the tick in which the run began, or just before. */
        uint64_t min_bytes = i == WRITABLE_INPUT && bytes <= payload_bytes ? payload_bytes + 1 : bytes;
        if (directory >= 0 && has_file_of(directory, min_bytes, since, 1))
            return 1;
    }
    return 0;
}

/* ---- wiping -------------------------------------------------------------------------------------------
 *
 * Directories may have any depth. So a wipe uses no recursion, but one descriptor, and opens ".." to go up.
 * That is safe, because every process of the run has ended and cannot move a directory meanwhile. */

/* Replace the walk's descriptor by that of `name`. */
static int step(int *directory, const char *name)
{
    int next = directory_open(*directory, name);
    if (next < 0)
        return -1;
    close(*directory);
    *directory = next;
    return 0;
}

/* Remove entries of this directory until one of them is a directory that is not empty. Its name goes to
 * `below`. If all entries were removed, `below` is empty. Return -1 if an entry cannot be removed. */
static int wipe_level(int directory, char below[MAX_NAME])
{
    struct listing listing;
    const char *name;
    *below = 0;
    listing_start(&listing, directory);
    while ((name = listing_next(&listing))) {
        if (!unlinkat(directory, name, 0) || !unlinkat(directory, name, AT_REMOVEDIR))
            continue;
        struct stat info;
        if (fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(info.st_mode) ||
            fchmodat(directory, name, 0700, 0))
            return -1;
        strcpy(below, name);
        return 0;
    }
    return listing.error ? -1 : 0;
}

int writable_wipe_one(enum writable which)
{
    char below[MAX_NAME];
    size_t depth = 0;
    int directory = directory_open(container_dirs.directory[which], ".");
    if (directory < 0)
        return 0;
    while (!wipe_level(directory, below)) {
        if (!*below && !depth) {
            close(directory);
            return 1;
        }
        if (step(&directory, *below ? below : ".."))
            break;
        if (*below)
            depth++;
        else
            depth--;
    }
    close(directory);
    return 0;
}

int writable_wipe(void)
{
    int clean = 1;
    for (int i = 0; i < WRITABLE_COUNT; i++)
        clean &= writable_wipe_one((enum writable)i);
    return clean;
}

/* The kernel searches for cycles of descriptors in flight whenever a Unix socket is closed.
 * net/unix/garbage.c */
void writable_release_in_flight(void)
{
    int pair[2];
    if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        close(pair[0]);
        close(pair[1]);
    }
}

static int is_as_empty_as_at_the_start(void)
{
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        struct statfs now;
        if (fstatfs(container_dirs.directory[i], &now) || now.f_bfree < empty[i].f_bfree ||
            now.f_ffree < empty[i].f_ffree)
            return 0;
    }
    return 1;
}

int writable_is_empty_again(void)
{
    /* Always, because descriptors in flight can also keep memory outside the directories (pipes, memfds). */
    writable_release_in_flight();
    for (int attempt = 0; attempt < EMPTY_ATTEMPTS; attempt++) {
        if (is_as_empty_as_at_the_start())
            return 1;
        writable_release_in_flight();
        usleep(EMPTY_PAUSE_US);
    }
    return 0;
}
