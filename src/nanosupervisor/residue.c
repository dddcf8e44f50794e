/* See residue.h. The checks, and the way in which a process could leave a difference:
 *
 *   processes     a process of another user id, which the launcher may not kill
 *   files         a file that cannot be removed, or whose memory is still in use; another owner, mode or extended
 *                 attribute of a writable directory
 *   IPC           System V objects and POSIX queues belong to the IPC namespace of the container
 *   network       sockets of the container's network can outlive their process, such as TCP connections in TIME_WAIT
 *   mounts        a mount in the namespace of the launcher, or one that has propagated to it
 *   the launcher  every process with the same user id may change its limits, priority, scheduling and CPUs: the kernel
 *                 compares only the user ids (prlimit(2), setpriority(2), sched_setscheduler(2), ioprio_set(2))
 *
 * Not checked, because no process can leave it behind: timers, locks, watches, memory mappings and anonymous files end
 * with their last process; keyrings and the file systems of other namespaces cannot be reached (seccomp.json). */
#define _GNU_SOURCE
#include "residue.h"
#include "directory.h"
#include "wire.h"
#include "writable.h"

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define ATTEMPTS 40
#define PAUSE_US 5000
#define FNV_START 14695981039346656037u /* FNV-1a, 64 bits */
#define FNV_FACTOR 1099511628211u
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Tables of the objects in the container's IPC and network namespace, with the number of lines in a new container: a
 * heading, and in `unix` both ends of the launcher's connection. The worker's end counts because the kernel makes it in
 * the namespace of the connecting process. Not compared with the state at the start, because sockets of the trial may
 * still exist then. Not every kernel has every file. */
static const struct {
    const char *path;
    unsigned lines;
} tables[] = {
    {"/proc/sysvipc/shm", 1},  {"/proc/sysvipc/sem", 1},   {"/proc/sysvipc/msg", 1},   {"/proc/self/net/tcp", 1},
    {"/proc/self/net/tcp6", 1}, {"/proc/self/net/udp", 1}, {"/proc/self/net/udp6", 1}, {"/proc/self/net/unix", 3},
};

struct text_file {
    uint64_t hash;
    unsigned lines;
};

/* struct sched_attr of linux/sched/types.h, in the size that Linux 5.3 has introduced: policy, priorities, utilization. */
struct scheduling {
    uint32_t words[14];
};

/* The attributes that other processes with the same user id can change. */
struct attributes {
    struct rlimit limits[RLIM_NLIMITS];
    struct scheduling scheduling;
    cpu_set_t cpus;
    int io_priority;
};

struct root {
    mode_t mode;
    uid_t user;
    gid_t group;
    ssize_t attribute_names; /* bytes; -1: not supported */
};

static struct {
    struct text_file mounts;
    struct attributes attributes;
    struct root roots[WRITABLE_COUNT];
} start;

/* ---- reading the state -------------------------------------------------------------------------------- */

/* A file that does not exist has no lines. Return 0 if it exists and cannot be read. */
static int read_text(const char *path, struct text_file *text)
{
    char buffer[1024];
    ssize_t got = 0;
    *text = (struct text_file){FNV_START, 0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    while (file >= 0 && (got = read(file, buffer, sizeof buffer)) > 0)
        for (ssize_t i = 0; i < got; i++) {
            text->hash = (text->hash ^ (uint8_t)buffer[i]) * FNV_FACTOR;
            text->lines += buffer[i] == '\n';
        }
    if (file >= 0)
        close(file);
    return !got;
}

static int read_attributes(struct attributes *attributes)
{
    memset(attributes, 0, sizeof *attributes);
    for (int i = 0; i < (int)RLIM_NLIMITS; i++)
        if (getrlimit((__rlimit_resource_t)i, &attributes->limits[i]))
            return 0;
    attributes->io_priority = (int)syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, 0);
    return !syscall(SYS_sched_getattr, 0, &attributes->scheduling, sizeof attributes->scheduling, 0) &&
           !sched_getaffinity(0, sizeof attributes->cpus, &attributes->cpus);
}

static int read_root(enum writable which, struct root *root)
{
    struct stat info;
    memset(root, 0, sizeof *root);
    if (fstat(container_dirs.directory[which], &info))
        return 0;
    root->mode = info.st_mode;
    root->user = info.st_uid;
    root->group = info.st_gid;
    root->attribute_names = flistxattr(container_dirs.directory[which], NULL, 0);
    return 1;
}

void residue_note_start(void)
{
    for (int i = 0; i < WRITABLE_COUNT; i++)
        if (!read_root((enum writable)i, &start.roots[i]))
            die("cannot read the mode of %s", writable_path[i]);
    if (!read_text("/proc/self/mountinfo", &start.mounts) || !read_attributes(&start.attributes))
        die("cannot read the state of the container");
}

/* ---- the comparison ----------------------------------------------------------------------------------- */

/* Return the first name in a directory that `matches`, or NULL. An error counts as a name. */
static const char *find_name(const char *path, int (*matches)(const char *name), struct listing *listing)
{
    const char *name;
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return "?";
    listing_start(listing, directory);
    while ((name = listing_next(listing)) && !matches(name))
        ;
    close(directory);
    return listing->error ? "?" : name;
}

static int is_other_process(const char *name)
{
    return *name >= '0' && *name <= '9' && strcmp(name, "1");
}

static int is_any(const char *name)
{
    (void)name;
    return 1;
}

static int describe(char text[RESIDUE_TEXT], const char *what, const char *detail)
{
    snprintf(text, RESIDUE_TEXT, "%s%.100s", what, detail);
    return 1;
}

static int process_or_queue_exists(char text[RESIDUE_TEXT])
{
    struct listing listing;
    const char *name;
    if ((name = find_name("/proc", is_other_process, &listing)))
        return describe(text, "process ", name);
    if ((name = find_name("/dev/mqueue", is_any, &listing)))
        return describe(text, "POSIX queue ", name);
    return 0;
}

static int table_differs(char text[RESIDUE_TEXT])
{
    struct text_file now;
    for (size_t i = 0; i < COUNT(tables); i++)
        if (!read_text(tables[i].path, &now) || now.lines > tables[i].lines)
            return describe(text, "an object in ", tables[i].path);
    if (!read_text("/proc/self/mountinfo", &now) || now.hash != start.mounts.hash || now.lines != start.mounts.lines)
        return describe(text, "a mount", "");
    return 0;
}

static int launcher_or_root_differs(char text[RESIDUE_TEXT])
{
    struct attributes attributes;
    struct root root;
    if (!read_attributes(&attributes) || memcmp(&attributes, &start.attributes, sizeof attributes))
        return describe(text, "a limit, priority or CPU set of the launcher", "");
    for (int i = 0; i < WRITABLE_COUNT; i++)
        if (!read_root((enum writable)i, &root) || memcmp(&root, &start.roots[i], sizeof root))
            return describe(text, "the mode or an attribute of ", writable_path[i]);
    return 0;
}

int residue_exists(char text[RESIDUE_TEXT])
{
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        if (!process_or_queue_exists(text) && !table_differs(text))
            return launcher_or_root_differs(text) ||
                   (!writable_is_empty_again() && describe(text, "memory of a file", ""));
        writable_release_in_flight();
        usleep(PAUSE_US);
    }
    return 1;
}
