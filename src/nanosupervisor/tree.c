/* See tree.h.
 *
 * Hazards: a job can leave folders nested thousands deep, with no permissions, with links to anywhere, FIFOs
 * and devices' look-alikes. So every step goes through an open descriptor and one name, follows no link,
 * opens nothing but what lstat has shown to be a regular file or folder, and the walks that may meet any
 * depth use no recursion and one descriptor (up by "..": no process is left that could move a folder). A job can
 * also fill the container with names, so that there is no memory for them: none of this keeps a whole folder's. */
#define _GNU_SOURCE
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_OUTPUT_DEPTH 32
/* Of a folder and those above it: with the longest names 5 MB, and as much again while they are sorted. */
#define NAMES_AT_ONCE 16384
#define NAMES_AT_LEAST 512 /* of a folder far down */
#define CROWDED 4096       /* entries of /output, whose refusals are more than one buffer of frames */
#define MAX_OUTPUT_PATH 1024 /* bytes; also S3's limit for a key, less its prefix, checked by the agent */
#define CHUNK (64 * 1024)
#define SETTLE_ATTEMPTS 40
#define SETTLE_PAUSE_US 5000

const char *const place_path[PLACE_COUNT] = {
    [PLACE_WORK] = WORK_DIR,   [PLACE_TMP] = "/tmp",      [PLACE_OUTPUT] = OUTPUT_DIR,
    [PLACE_INPUT] = INPUT_DIR, [PLACE_SHM] = "/dev/shm",
};

struct tree container_tree;
static struct statfs empty[PLACE_COUNT];

static int open_folder(int parent, const char *name)
{
    return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int is_dots(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* ---- what is in a folder ------------------------------------------------------------------------------ */

/* As getdents64(2) writes them. */
struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

/* A folder as it is read: a buffer for a few names in the caller's frame, where readdir(3) would allocate one for
 * thousands. A wipe that starts anew after each of its folders reads no more than this in vain, either. */
struct listing {
    int folder;
    int failed; /* errno */
    size_t at, length;
    char buffer[1024] __attribute__((aligned(8)));
};

static void list(struct listing *listing, int folder)
{
    listing->folder = folder;
    listing->failed = lseek(folder, 0, SEEK_SET) ? errno : 0;
    listing->at = listing->length = 0;
}

/* The next name, or NULL at the end or with `failed` set. */
static const char *next_name(struct listing *listing)
{
    while (!listing->failed) {
        if (listing->at == listing->length) {
            long got = syscall(SYS_getdents64, listing->folder, listing->buffer, sizeof listing->buffer);
            if (got < 0)
                listing->failed = errno;
            if (got <= 0)
                return NULL;
            listing->at = 0;
            listing->length = (size_t)got;
        }
        const struct entry *entry = (const struct entry *)(listing->buffer + listing->at);
        listing->at += entry->length;
        if (!is_dots(entry->name))
            return entry->name;
    }
    return NULL;
}

/* ---- code in ---------------------------------------------------------------------------------------- */

/* Give a copy the time of the original. */
static void copy_time(int to, const struct stat *info)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, info->st_mtim};
    if (futimens(to, times))
        errno = 0; /* the copy is whole all the same */
}

static int copy_content(int from, int to, off_t left)
{
    while (left > 0) {
        ssize_t moved = sendfile(to, from, NULL, (size_t)left);
        if (moved == 0)
            errno = EIO;
        if (moved <= 0)
            return -1;
        left -= moved;
    }
    return 0;
}

static int copy_file(int from_folder, int to_folder, const char *name, const struct stat *info)
{
    int from = openat(from_folder, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (from < 0)
        return -1;
    mode_t mode = info->st_mode & 0111 ? 0755 : 0644;
    int to = openat(to_folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    int failed = to < 0 || copy_content(from, to, info->st_size), error = errno;
    if (!failed)
        copy_time(to, info);
    close(from);
    if (to >= 0)
        close(to);
    errno = error;
    return failed ? -1 : 0;
}

/* A symbolic link is copied as it is and never followed; the agent has checked its target. */
static int copy_link(int from_folder, int to_folder, const char *name, const struct stat *info)
{
    char target[PATH_MAX];
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, info->st_mtim};
    ssize_t length = readlinkat(from_folder, name, target, sizeof target - 1);
    if (length < 0)
        return -1;
    target[length] = 0;
    return symlinkat(target, to_folder, name) || utimensat(to_folder, name, times, AT_SYMLINK_NOFOLLOW);
}

static int copy_folder(int from, int to, struct ready_report *report);

static int copy_below(int from_folder, int to_folder, const char *name, const struct stat *info,
                      struct ready_report *report)
{
    int from = -1, to = -1, failed = mkdirat(to_folder, name, 0755) || (from = open_folder(from_folder, name)) < 0 ||
                                     (to = open_folder(to_folder, name)) < 0;
    if (!failed && !(failed = copy_folder(from, to, report)))
        copy_time(to, info);
    else if (from >= 0 && to < 0)
        close(from);
    int error = errno;
    if (to >= 0)
        close(to);
    errno = error;
    return failed;
}

static int copy_entry(int from, int to, const char *name, struct ready_report *report)
{
    struct stat info;
    if (fstatat(from, name, &info, AT_SYMLINK_NOFOLLOW))
        return -1;
    if (S_ISDIR(info.st_mode))
        return copy_below(from, to, name, &info, report);
    report->files++;
    if (S_ISLNK(info.st_mode))
        return copy_link(from, to, name, &info);
    if (!S_ISREG(info.st_mode))
        return 0;
    report->bytes += (uint64_t)info.st_size;
    return copy_file(from, to, name, &info);
}

/* The tree was made by the agent from a checked archive: at most 64 levels by its limit on paths, so recursion is
 * safe here. Closes `from`. */
static int copy_folder(int from, int to, struct ready_report *report)
{
    DIR *entries = fdopendir(from);
    struct dirent *entry;
    int failed = 0;
    if (!entries) {
        close(from);
        return -1;
    }
    while (!failed && (entry = readdir(entries)))
        if (!is_dots(entry->d_name))
            failed = copy_entry(from, to, entry->d_name, report);
    int error = errno;
    closedir(entries);
    errno = error;
    return failed ? -1 : 0;
}

int tree_copy(int from, int to, struct ready_report *report)
{
    return copy_folder(from, to, report);
}

struct ready_report tree_copy_code(int to)
{
    struct ready_report report = {0};
    int from = open_folder(AT_FDCWD, SLOT_CODE);
    if (from < 0 || copy_folder(from, to, &report))
        report.error = (uint32_t)(errno ? errno : EIO);
    return report;
}

int tree_write_payload(const struct tree *tree, const void *payload, size_t length)
{
    int file = openat(tree->place[PLACE_INPUT], PAYLOAD_NAME, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0644);
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

/* ---- outputs out ------------------------------------------------------------------------------------ */

struct sending {
    const struct run_request *request;
    uint32_t files;
    uint64_t bytes;
    size_t path_length;
    char path[MAX_OUTPUT_PATH + 1 + 256];
};

static void refuse(const struct sending *sending, enum refusal reason)
{
    uint8_t code = (uint8_t)reason;
    wire_send2(FRAME_REFUSED, &code, 1, sending->path, sending->path_length);
}

static void send_file(struct sending *sending, int folder, const char *name)
{
    static char chunk[CHUNK];
    struct stat info;
    /* O_NONBLOCK: a lease on the file, held by a descriptor that is in flight between dead sockets, would have us
     * wait for 45 s (fcntl(2), lease-break-time); and should the kernel ever show a FIFO as a regular file, we do
     * not hang on it. */
    int file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 && errno == EACCES && !fchmodat(folder, name, 0600, 0))
        file = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0 || fstat(file, &info) || !S_ISREG(info.st_mode)) {
        refuse(sending, REFUSED_UNREADABLE);
        if (file >= 0)
            close(file);
        return;
    }
    uint64_t size = (uint64_t)info.st_size, left = size;
    wire_send2(FRAME_FILE, &size, sizeof size, sending->path, sending->path_length);
    while (left) {
        size_t wanted = left < CHUNK ? (size_t)left : CHUNK;
        ssize_t got = read(file, chunk, wanted);
        if (got <= 0) { /* cannot happen on a tmpfs at rest; the size was promised, so pad rather than lie */
            memset(chunk, 0, wanted);
            got = (ssize_t)wanted;
        }
        wire_send(FRAME_DATA, chunk, (size_t)got);
        left -= (uint64_t)got;
    }
    close(file);
    sending->files++;
    sending->bytes += size;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Some of a folder's names, in order. */
struct names {
    size_t count;
    char *name[];
};

/* Keep that many of the first. */
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

/* The first names of a folder behind `after`, that many at most, to be freed; NULL when they cannot be had. */
static struct names *names_behind(int folder, const char *after, size_t most)
{
    struct listing listing;
    size_t room = 0;
    struct names *names = calloc(1, sizeof *names);
    const char *name, *limit = NULL;
    int failed = !names;
    list(&listing, folder);
    while (!failed && (name = next_name(&listing))) {
        if (strcmp(name, after) <= 0 || (limit && strcmp(name, limit) > 0))
            continue;
        if (names->count == 2 * most) {
            keep_first(names, most);
            limit = names->name[most - 1];
            if (strcmp(name, limit) > 0)
                continue;
        }
        if (names->count == room) {
            room = room ? 2 * room : 16;
            struct names *larger = realloc(names, sizeof *names + room * sizeof *names->name);
            if ((failed = !larger))
                break;
            names = larger;
        }
        failed = !(names->name[names->count] = strdup(name));
        names->count += !failed;
    }
    if (failed || listing.failed) {
        free_names(names);
        return NULL;
    }
    keep_first(names, most);
    return names;
}

static void send_folder(struct sending *sending, int folder, int depth);

static void send_entry(struct sending *sending, int folder, const char *name, int depth)
{
    struct stat info;
    size_t before = sending->path_length;
    size_t length = strlen(name);
    if (before)
        sending->path[sending->path_length++] = '/';
    memcpy(sending->path + sending->path_length, name, length); /* 256 bytes of room for one more name */
    sending->path_length += length;

    if (sending->path_length > MAX_OUTPUT_PATH)
        refuse(sending, REFUSED_DEPTH);
    else if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW))
        refuse(sending, REFUSED_UNREADABLE);
    else if (S_ISDIR(info.st_mode)) {
        fchmodat(folder, name, 0700, 0);
        int below = open_folder(folder, name);
        if (below < 0)
            refuse(sending, REFUSED_UNREADABLE);
        else if (depth >= MAX_OUTPUT_DEPTH)
            refuse(sending, REFUSED_DEPTH);
        else
            send_folder(sending, below, depth + 1);
        if (below >= 0)
            close(below);
    } else if (S_ISLNK(info.st_mode))
        refuse(sending, REFUSED_LINK);
    else if (!S_ISREG(info.st_mode))
        refuse(sending, REFUSED_SPECIAL);
    else if (sending->files >= sending->request->output_max_files)
        refuse(sending, REFUSED_COUNT);
    else if ((uint64_t)info.st_size > sending->request->output_max_file_bytes)
        refuse(sending, REFUSED_SIZE);
    else if ((uint64_t)info.st_size > sending->request->output_max_total_bytes - sending->bytes)
        refuse(sending, REFUSED_TOTAL);
    else
        send_file(sending, folder, name);
    sending->path_length = before;
}

static void send_folder(struct sending *sending, int folder, int depth)
{
    static size_t held; /* names, of the folders above */
    size_t most = NAMES_AT_ONCE > held ? (NAMES_AT_ONCE - held) / 2 : 0, count;
    char last[256] = "";
    if (most < NAMES_AT_LEAST)
        most = NAMES_AT_LEAST;
    do {
        struct names *names = names_behind(folder, last, most);
        if (!names) {
            refuse(sending, REFUSED_UNREADABLE);
            return;
        }
        held += count = names->count;
        for (size_t i = 0; i < count; i++)
            send_entry(sending, folder, names->name[i], depth);
        if (count)
            strcpy(last, names->name[count - 1]);
        free_names(names);
        held -= count;
    } while (count == most);
}

/* Whether there is so much in a place that to go through it can take memory which the container has not. */
static int is_crowded(int folder)
{
    struct statfs space;
    return fstatfs(folder, &space) || space.f_files - space.f_ffree > CROWDED;
}

void tree_send_outputs(const struct tree *tree, const struct run_request *request)
{
    static struct sending sending;
    memset(&sending, 0, sizeof sending);
    sending.request = request;
    int folder = open_folder(tree->place[PLACE_OUTPUT], ".");
    if (folder < 0) {
        refuse(&sending, REFUSED_UNREADABLE);
        return;
    }
    if (is_crowded(folder))
        wire_flush(); /* how the run ended comes first: the agent then makes room for the rest */
    send_folder(&sending, folder, 1);
    close(folder);
}

/* ---- walks of any depth ----------------------------------------------------------------------------- */

/* Move the walk's descriptor; the old one is closed. */
static int step(int *folder, const char *name)
{
    int next = open_folder(*folder, name);
    if (next < 0)
        return -1;
    close(*folder);
    *folder = next;
    return 0;
}

/* Remove what can be removed in this folder; the name of a folder that is not empty into `below`. */
static int wipe_level(int folder, char below[256])
{
    struct listing listing;
    const char *name;
    *below = 0;
    list(&listing, folder);
    while ((name = next_name(&listing))) {
        if (!unlinkat(folder, name, 0) || !unlinkat(folder, name, AT_REMOVEDIR))
            continue;
        struct stat info;
        if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(info.st_mode) ||
            fchmodat(folder, name, 0700, 0))
            return -1;
        strcpy(below, name);
        return 0;
    }
    return listing.failed ? -1 : 0;
}

int tree_wipe_place(enum place place)
{
    char below[256];
    size_t depth = 0;
    int folder = open_folder(container_tree.place[place], ".");
    if (folder < 0)
        return 0;
    for (;;) {
        if (wipe_level(folder, below))
            break;
        if (*below) {
            if (step(&folder, below))
                break;
            depth++;
        } else if (!depth) {
            close(folder);
            return 1;
        } else {
            if (step(&folder, ".."))
                break;
            depth--;
        }
    }
    close(folder);
    return 0;
}

int tree_wipe(void)
{
    int clean = 1;
    for (int place = 0; place < PLACE_COUNT; place++)
        clean &= tree_wipe_place(place);
    return clean;
}

void tree_open_container(void)
{
    for (int place = 0; place < PLACE_COUNT; place++) {
        container_tree.place[place] = open_folder(AT_FDCWD, place_path[place]);
        if (container_tree.place[place] < 0 || fstatfs(container_tree.place[place], &empty[place]))
            die("cannot look at %s", place_path[place]);
    }
}

/* The kernel looks for cycles of descriptors in flight whenever a Unix socket is closed. net/unix/garbage.c */
void tree_collect_sockets(void)
{
    int pair[2];
    if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        close(pair[0]);
        close(pair[1]);
    }
}

int tree_is_empty_again(void)
{
    tree_collect_sockets(); /* memory that is in no folder can be in flight as well: pipes, memfds */
    for (int attempt = 0; attempt < SETTLE_ATTEMPTS; attempt++) {
        int same = 1;
        for (int place = 0; same && place < PLACE_COUNT; place++) {
            struct statfs now;
            same = !fstatfs(container_tree.place[place], &now) && now.f_bfree >= empty[place].f_bfree &&
                   now.f_ffree >= empty[place].f_ffree;
        }
        if (same)
            return 1;
        tree_collect_sockets();
        usleep(SETTLE_PAUSE_US);
    }
    return 0;
}

int tree_is_full(const struct tree *tree)
{
    for (int place = 0; place < PLACE_COUNT; place++) {
        struct statfs space;
        if (!fstatfs(tree->place[place], &space) && space.f_blocks && (!space.f_bavail || (space.f_files && !space.f_ffree)))
            return 1;
    }
    return 0;
}

uint64_t tree_used_bytes(const struct tree *tree)
{
    uint64_t used = 0;
    for (int place = 0; place < PLACE_COUNT; place++) {
        struct statfs space;
        if (!fstatfs(tree->place[place], &space))
            used += (uint64_t)(space.f_blocks - space.f_bfree) * (uint64_t)space.f_bsize;
    }
    return used;
}

static int is_before(const struct timespec *time, const struct timespec *other)
{
    return time->tv_sec != other->tv_sec ? time->tv_sec < other->tv_sec : time->tv_nsec < other->tv_nsec;
}

/* A file of the code may have been copied in the tick in which the run began. It has its time from the zip. */
static int has_changed(const struct stat *info, const struct timespec *since)
{
    return !is_before(&info->st_ctim, since) && !is_before(&info->st_mtim, since);
}

static int has_file_of(int folder, uint64_t bytes, const struct timespec *since, int depth)
{
    struct listing listing;
    const char *name;
    int found = 0;
    list(&listing, folder);
    while (!found && (name = next_name(&listing))) {
        struct stat info;
        if (fstatat(folder, name, &info, AT_SYMLINK_NOFOLLOW))
            continue;
        if (S_ISREG(info.st_mode))
            found = (uint64_t)info.st_size >= bytes && has_changed(&info, since);
        else if (S_ISDIR(info.st_mode) && depth < MAX_OUTPUT_DEPTH) {
            int below = open_folder(folder, name);
            if (below >= 0)
                found = has_file_of(below, bytes, since, depth + 1);
        }
    }
    close(folder);
    return found;
}

int tree_has_file_of(const struct tree *tree, uint64_t bytes, uint64_t payload_bytes, const struct timespec *since)
{
    for (int place = 0; place < PLACE_COUNT; place++) {
        int folder = open_folder(tree->place[place], ".");
        /* The payload was written in the tick in which the run began, or just before. */
        uint64_t least = place == PLACE_INPUT && bytes <= payload_bytes ? payload_bytes + 1 : bytes;
        if (folder >= 0 && has_file_of(folder, least, since, 1))
            return 1;
    }
    return 0;
}
