/* See sandbox_mounts.h. Sources: mount_namespaces(7); the kernel's Documentation/filesystems/overlayfs.rst,
 * "User xattr". An overlay in a user namespace needs Linux 5.11. */
#define _GNU_SOURCE
#include "sandbox_mounts.h"
#include "copy.h"
#include "namespaces.h"
#include "sandbox_init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define SLOT_DIR "/slot"
#define SLOT_PROGRAM SLOT_DIR "/program"
/* A directory of every image: empty, owned by root. */
#define EMPTY_DIR "/nanosupervisor/empty"
#define SMALL_FILES 16u /* code is small up to these limits; the root directory counts as a file */
#define SMALL_BYTES (256u << 10)
#define PLAIN (MS_NOSUID | MS_NODEV)
#define SEALED (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* ---- /proc and /sys ----------------------------------------------------------------------------------- */

/* Files of the sandbox's own /proc that must be covered. Docker masks most of them in the container's /proc, or
 * makes them read-only (moby, oci/defaults.go). The others are readable for everybody in newer kernels, or show
 * the locks of the whole host. */
static const char *const hidden[] = {
    "/proc/asound",       "/proc/acpi",        "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/locks",      "/proc/sched_debug", "/proc/scsi",       "/proc/timer_list",
    /* The kernel's command line, which may contain passwords, and the host's swap files. */
    "/proc/cmdline",      "/proc/swaps",
};
static const char *const read_only[] = {
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger",
};
/* Files in /sys, which a sandbox shares with its container. Docker masks some of them. The others contain
 * names of host files (of loop devices), or identify the machine (on EC2, its instance id). */
static const char *const hidden_in_sys[] = {
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/devices/virtual/block", "/sys/devices/virtual/dmi",
    "/sys/hypervisor",
};

/* Cover a file or a directory. A path that this kernel does not have needs no cover. */
static int hide(const char *path)
{
    struct stat info;
    if (lstat(path, &info))
        return errno == ENOENT ? 0 : -1;
    return mount(S_ISDIR(info.st_mode) ? EMPTY_DIR : "/dev/null", path, NULL, MS_BIND, NULL);
}

static int make_read_only(const char *path)
{
    if (mount(path, path, NULL, MS_BIND | MS_REC, NULL))
        return errno == ENOENT ? 0 : -1;
    return mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | SEALED, NULL);
}

/* By default only root may listen on ports below 1024. Let the run use them, because no other run shares its
 * network. If the kernel refuses this setting, the run continues without these ports. ip-sysctl.rst */
static void allow_low_ports(void)
{
    write_text("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
}

void setup_proc(void)
{
    must(mount("proc", "/proc", "proc", SEALED, NULL), "mount /proc");
    allow_low_ports(); /* before /proc/sys is read-only */
    for (size_t i = 0; i < COUNT(hidden); i++)
        must(hide(hidden[i]), hidden[i]);
    for (size_t i = 0; i < COUNT(read_only); i++)
        must(make_read_only(read_only[i]), read_only[i]);
}

const char *hide_sys(void)
{
    for (size_t i = 0; i < COUNT(hidden_in_sys); i++)
        if (hide(hidden_in_sys[i]))
            return hidden_in_sys[i];
    return NULL;
}

/* ---- the writable directories ------------------------------------------------------------------------- */

static void mount_tmpfs(const char *where, unsigned long flags, uint64_t bytes, uint64_t files)
{
    char options[96];
    snprintf(options, sizeof options, "mode=1777,size=%llu,nr_inodes=%llu", (unsigned long long)bytes,
             (unsigned long long)files);
    must(mount("tmpfs", where, "tmpfs", PLAIN | flags, options), where);
}

/* Mount a tmpfs of the same size as one of the container's directories. */
static void mount_like(enum writable which, const char *where, unsigned long flags)
{
    struct statfs size;
    must(fstatfs(container_dirs.directory[which], &size), "fstatfs");
    mount_tmpfs(where, flags, (uint64_t)size.f_blocks * (uint64_t)size.f_bsize, size.f_files);
}

static int open_directory(const char *path)
{
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(directory < 0, path);
    return directory;
}

/* Try to set an extended attribute. Return 0 if the kernel's tmpfs has no attributes (before Linux 6.6). An
 * overlay needs them when a program removes a directory of the code and makes a new one of the same name. */
static int set_attribute(int directory)
{
    return !fsetxattr(directory, "user.nanoagent", "", 0, 0);
}

/* Open the tmpfs for changes to the code. It is mounted at /tmp. Later the sandbox's real /tmp covers it, and
 * then it has no path. */
static int open_changes(const struct work_limits *limits)
{
    mount_tmpfs("/tmp", 0, limits->bytes, limits->files);
    int changes = open_directory("/tmp");
    if (!set_attribute(changes))
        mount_like(WRITABLE_WORK, "/tmp", MS_REMOUNT); /* more room: the code will be copied here, too */
    return changes;
}

void setup_writable_dirs(struct writable_dirs *dirs, const struct work_limits *limits)
{
    dirs->directory[WRITABLE_WORK] = open_changes(limits);
    for (int i = 0; i < WRITABLE_COUNT; i++) {
        if (i == WRITABLE_WORK)
            continue;
        mount_like((enum writable)i, writable_path[i], 0);
        dirs->directory[i] = open_directory(writable_path[i]);
    }
    must(mount("mqueue", "/dev/mqueue", "mqueue", SEALED, NULL), "mount /dev/mqueue");
    /* The kernel limits the number of terminals of the whole host. So a run may have only a few. */
    must(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,max=64"),
         "mount /dev/pts");
}

/* ---- the code ----------------------------------------------------------------------------------------- */

/* Mount an overlay over a directory: changes go to changes/NAME. */
static int overlay(const char *directory, int changes, const char *name, unsigned long flags)
{
    char scratch[64], options[256];
    snprintf(scratch, sizeof scratch, "%s.scratch", name);
    must(mkdirat(changes, name, 0755) || mkdirat(changes, scratch, 0755), "mkdir");
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=/proc/self/fd/%d/%s,workdir=/proc/self/fd/%d/%s,userxattr",
             directory, changes, name, changes, scratch);
    return mount("overlay", directory, "overlay", flags, options);
}

/* Whether a copy of the code is at least as fast as an overlay: 12 µs for each file, against 0.3 ms to
 * mount and unmount an overlay. */
static int is_small(int code)
{
    struct statfs used;
    return !fstatfs(code, &used) && used.f_files - used.f_ffree <= SMALL_FILES &&
           (used.f_blocks - used.f_bfree) * (uint64_t)used.f_bsize <= SMALL_BYTES;
}

/* Bind a copy of the code over /work. Closes `code`. */
static void copy_code(int code, int changes)
{
    char private[64];
    struct ready_report copied = {0};
    must(mkdirat(changes, "copy", 0755), "mkdir");
    snprintf(private, sizeof private, "/proc/self/fd/%d/copy", changes);
    must(mount(private, WORK_DIR, NULL, MS_BIND, NULL), "bind the code's directory");
    int copy = open_directory(WORK_DIR);
    must(copy_tree(code, copy, &copied), "copy the code");
    close(copy);
}

/* Small code is copied, because a copy behaves like any directory. An overlay differs in two ways. First, a
 * directory of the code cannot be renamed (EXDEV): that needs redirects, which the kernel refuses to ordinary
 * users. Second, the files of an overlay have another device number than its directories. The option xino
 * would change that, but with this option the kernel logs a line for each mount. overlayfs.rst */
void attach_work(int changes)
{
    int code = open_directory(WORK_DIR);
    if (!is_small(code) && set_attribute(changes) && !overlay(WORK_DIR, changes, "code", PLAIN))
        close(code);
    else
        copy_code(code, changes);
}

/* The files of /slot are files of the host, and other containers may have hard links to the same files. Those
 * containers would see a lock on such a file. An overlay has its own inodes, so they do not see it. */
void attach_slot(int changes)
{
    if (access(SLOT_PROGRAM, F_OK)) {
        must(mount("tmpfs", SLOT_DIR, "tmpfs", SEALED | MS_RDONLY, "size=4k,mode=555"), "cover /slot");
        return;
    }
    if (overlay(SLOT_DIR, changes, "slot", PLAIN | MS_RDONLY))
        errno = 0; /* no overlay on this file system: other containers see locks on the program, as at level L1 */
}
