/* See unpack.h. */
#define _GNU_SOURCE
#include "unpack.h"
#include "directory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOT_CODE "/slot/code"
#define SLOT_BYTE_CODE "/slot/byte_code"
#define PACK_MAGIC "NANOPACK"
#define PACK_VERSION 1u
#define MAX_DEPTH 64 /* the worker refuses deeper trees */
#define WINDOW_BYTES (64u << 10) /* larger steps leave the CPU's cache */
#define NANOSECONDS 1000000000

enum kind { PACK_FILE = 1, PACK_DIRECTORY = 2, PACK_LINK = 3 };

struct __attribute__((packed)) record {
    uint64_t at; /* offset of the data */
    uint64_t bytes;
    int64_t modified_ns; /* Unix epoch */
    uint32_t leads_to;   /* of links; for the worker */
    uint16_t depth;      /* the root has 0 */
    uint8_t kind;
    uint8_t is_executable;
};

struct __attribute__((packed)) footer {
    char magic[8];
    uint32_t version;
    uint32_t checksum; /* CRC-32 of the records, the names, and the rest of the footer */
    uint32_t record_count;
    uint32_t names_bytes;
    uint32_t base; /* the number of the directory whose entries become the code */
    uint32_t files; /* the sizes of the tree, for the worker */
    uint64_t bytes;
    uint64_t memory_bytes;
};

#define CHECKED_AT offsetof(struct footer, record_count)

/* A pack while it is read. */
struct pack {
    int file;
    struct footer footer;
    uint8_t *index; /* records and names */
    uint64_t index_at;
    /* A part of the data. Small files that follow each other are read in one step. */
    uint64_t window_at;
    size_t window_length;
    uint8_t *window;
};

static int damaged(void)
{
    errno = EBADMSG;
    return -1;
}

static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t length)
{
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t byte = 0; byte < 256; byte++) {
            table[byte] = byte;
            for (int bit = 0; bit < 8; bit++)
                table[byte] = (table[byte] >> 1) ^ (table[byte] & 1 ? 0xEDB88320u : 0);
        }
    crc = ~crc;
    for (size_t i = 0; i < length; i++)
        crc = table[(crc ^ data[i]) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

static int read_exactly(int file, void *into, size_t length, uint64_t at)
{
    uint8_t *next = into;
    while (length) {
        ssize_t got = pread(file, next, length, (off_t)at);
        if (got == 0)
            return damaged();
        if (got < 0)
            return -1;
        next += got;
        at += (uint64_t)got;
        length -= (size_t)got;
    }
    return 0;
}

static int write_all(int to, const uint8_t *data, size_t length)
{
    while (length) {
        ssize_t written = write(to, data, length);
        if (written < 0)
            return -1;
        data += written;
        length -= (size_t)written;
    }
    return 0;
}

/* ---- the index ---------------------------------------------------------------------------------------- */

static int read_footer(struct pack *pack)
{
    struct stat info;
    if (fstat(pack->file, &info))
        return -1;
    uint64_t size = (uint64_t)info.st_size;
    if (!S_ISREG(info.st_mode) || size < sizeof pack->footer)
        return damaged();
    if (read_exactly(pack->file, &pack->footer, sizeof pack->footer, size - sizeof pack->footer))
        return -1;
    const struct footer *footer = &pack->footer;
    uint64_t index_bytes = footer->record_count * (uint64_t)sizeof(struct record) + footer->names_bytes;
    if (memcmp(footer->magic, PACK_MAGIC, sizeof footer->magic) || footer->version != PACK_VERSION ||
        index_bytes > size - sizeof *footer || footer->base >= footer->record_count)
        return damaged();
    pack->index_at = size - sizeof *footer - index_bytes;
    return 0;
}

static int read_index(struct pack *pack)
{
    const struct footer *footer = &pack->footer;
    size_t length = footer->record_count * sizeof(struct record) + footer->names_bytes;
    pack->index = malloc(length);
    if (!pack->index || read_exactly(pack->file, pack->index, length, pack->index_at))
        return -1;
    uint32_t checksum = crc32(crc32(0, pack->index, length), (const uint8_t *)footer + CHECKED_AT,
                              sizeof *footer - CHECKED_AT);
    return checksum == footer->checksum ? 0 : damaged();
}

static struct record record_of(const struct pack *pack, uint32_t number)
{
    struct record record;
    memcpy(&record, pack->index + number * sizeof record, sizeof record);
    return record;
}

/* Return the name that begins at `*at`, an offset in the index, and move `*at` behind it. NULL: it has no end. */
static const char *next_name(const struct pack *pack, size_t *at)
{
    const char *name = (const char *)pack->index + *at;
    size_t end = pack->footer.record_count * sizeof(struct record) + pack->footer.names_bytes;
    size_t length = strnlen(name, end - *at);
    if (length == end - *at)
        return NULL;
    *at += length + 1;
    return name;
}

/* Whether a name is that of an entry, and not a path or an empty name. */
static int is_entry_name(const char *name)
{
    size_t length = strlen(name);
    return length && length < MAX_NAME && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}

/* ---- making the tree ---------------------------------------------------------------------------------- */

static struct timespec time_of(const struct record *record)
{
    int64_t seconds = record->modified_ns / NANOSECONDS, rest = record->modified_ns % NANOSECONDS;
    return (struct timespec){rest < 0 ? seconds - 1 : seconds, rest < 0 ? rest + NANOSECONDS : rest};
}

/* Read some data of the pack into the window. Return how many of the bytes from `at` on it has, or -1. */
static ssize_t fill_window(struct pack *pack, uint64_t at, uint64_t bytes)
{
    uint64_t end = pack->window_at + pack->window_length;
    if (at < pack->window_at || at >= end) {
        /* Read ahead only if the window ended here. Otherwise the files have another order than their data. */
        uint64_t most = at == end ? pack->index_at - at : bytes;
        size_t length = most < WINDOW_BYTES ? (size_t)most : WINDOW_BYTES;
        pack->window_length = 0;
        if (read_exactly(pack->file, pack->window, length, at))
            return -1;
        pack->window_at = at;
        pack->window_length = length;
        end = at + length;
    }
    return (ssize_t)(end - at < bytes ? end - at : bytes);
}

static int write_content(struct pack *pack, const struct record *record, int to)
{
    uint64_t at = record->at, left = record->bytes;
    while (left) {
        ssize_t got = fill_window(pack, at, left);
        if (got < 0 || write_all(to, pack->window + (at - pack->window_at), (size_t)got))
            return -1;
        at += (uint64_t)got;
        left -= (uint64_t)got;
    }
    return 0;
}

static int make_file(struct pack *pack, const struct record *record, int directory, const char *name)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, time_of(record)};
    mode_t mode = record->is_executable ? 0755 : 0644;
    int to = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (to < 0)
        return -1;
    int failed = write_content(pack, record, to) || futimens(to, times), error = errno;
    close(to);
    errno = error;
    return failed ? -1 : 0;
}

/* Make a symbolic link. The worker has checked that it stays inside the code. Nothing is written through a link. */
static int make_link(struct pack *pack, const struct record *record, int directory, const char *name)
{
    char target[PATH_MAX];
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, time_of(record)};
    if (!record->bytes || record->bytes >= sizeof target)
        return damaged();
    if (read_exactly(pack->file, target, record->bytes, record->at))
        return -1;
    target[record->bytes] = 0;
    if (strlen(target) != record->bytes || target[0] == '/')
        return damaged();
    return symlinkat(target, directory, name) || utimensat(directory, name, times, AT_SYMLINK_NOFOLLOW) ? -1 : 0;
}

/* Make a directory, unless it exists. Return its descriptor, or -1. */
static int make_directory(int parent, const char *name)
{
    return mkdirat(parent, name, 0755) && errno != EEXIST ? -1 : directory_open(parent, name);
}

/* Make a file or link. */
static int make_entry(struct pack *pack, const struct record *record, int directory, const char *name,
                      struct ready_report *report)
{
    if (record->at > pack->index_at || record->bytes > pack->index_at - record->at)
        return damaged();
    report->files++;
    if (record->kind == PACK_LINK)
        return make_link(pack, record, directory, name);
    report->bytes += record->bytes;
    return make_file(pack, record, directory, name);
}

/* The open directories from the one that gets the tree (level 0) down to that of the next entry. */
struct path {
    int directory[MAX_DEPTH + 1];
    unsigned level;
};

static void go_up(struct path *path, unsigned level)
{
    int error = errno;
    while (path->level > level)
        close(path->directory[path->level--]);
    errno = error;
}

/* Make the entries below the base. They follow it, and each directory is followed by its entries. */
static int make_tree(struct pack *pack, struct path *path, struct ready_report *report)
{
    size_t name_at = pack->footer.record_count * sizeof(struct record);
    uint16_t base_depth = record_of(pack, pack->footer.base).depth;
    for (uint32_t number = 0; number < pack->footer.record_count; number++) {
        const char *name = next_name(pack, &name_at);
        if (!name)
            return damaged();
        if (number <= pack->footer.base)
            continue;
        struct record record = record_of(pack, number);
        if (record.depth <= base_depth)
            return 0;
        unsigned level = record.depth - base_depth - 1u;
        if (level > path->level || !is_entry_name(name))
            return damaged();
        go_up(path, level);
        int directory = path->directory[level];
        if (record.kind == PACK_DIRECTORY) {
            if (level == MAX_DEPTH)
                return damaged();
            if ((path->directory[level + 1] = make_directory(directory, name)) < 0)
                return -1;
            path->level = level + 1;
        } else if (record.kind != PACK_FILE && record.kind != PACK_LINK)
            return damaged();
        else if (make_entry(pack, &record, directory, name, report))
            return -1;
    }
    return 0;
}

int unpack(const char *name, int to, struct ready_report *report)
{
    struct pack pack = {.file = open(name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)};
    struct path path = {.directory = {to}};
    if (pack.file < 0)
        return -1;
    pack.window = malloc(WINDOW_BYTES);
    int failed = !pack.window || read_footer(&pack) || read_index(&pack) || make_tree(&pack, &path, report);
    go_up(&path, 0);
    int error = errno;
    free(pack.window);
    free(pack.index);
    close(pack.file);
    errno = error;
    return failed ? -1 : 0;
}

struct ready_report unpack_slot_code(int to)
{
    struct ready_report report = {0};
    if (unpack(SLOT_CODE, to, &report) || (!access(SLOT_BYTE_CODE, F_OK) && unpack(SLOT_BYTE_CODE, to, &report)))
        report.error = (uint32_t)(errno ? errno : EIO);
    return report;
}
