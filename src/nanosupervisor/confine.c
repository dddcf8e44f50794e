/* See confine.h. Used by the supervisor and, in the Python image, by the zygote's extension module. */
#define _GNU_SOURCE
#include "confine.h"
#include "descriptors.h"
#include "filter.h"
#include "job.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void limit(int resource, uint64_t value)
{
    struct rlimit both = {value, value};
    setrlimit(resource, &both);
}

/* Make the kernel kill the run, not the supervisor, if memory runs out. If the host forbids this setting, the
 * run continues without it. */
static void prefer_for_out_of_memory(void)
{
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
        if (write(file, "1000", 4) < 0)
            errno = 0;
        close(file);
    }
}

static void limit_resources(const struct confinement *confinement)
{
    /* 1 byte, not 0: if core_pattern is a pipe, the kernel runs the host's helper for a limit of 0, and
     * not for 1. If it is a file, the kernel writes nothing below one page. fs/coredump.c */
    limit(RLIMIT_CORE, 1);
    limit(RLIMIT_FSIZE, confinement->file_size_bytes);
    limit(RLIMIT_NOFILE, confinement->open_files);
    limit(RLIMIT_MEMLOCK, 64 * 1024); /* locked pages cannot be reclaimed; this was the kernel's default until 5.16 */
    /* Timers and queued signals. The default allows tens of thousands, which the kernel needs seconds to
     * release. */
    limit(RLIMIT_SIGPENDING, 4096);
    if (confinement->shared)
        limit(RLIMIT_MSGQUEUE, 0);
}

/* In a sandbox the process has capabilities that are valid only in the sandbox's user namespace. The program
 * must not have these either. At the shared level the process has no capabilities, so the bounding set cannot
 * and need not be changed. */
int confine_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2];
    memset(none, 0, sizeof none);
    int capability = 0;
    while (!prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
        capability++;
    if (errno != EINVAL && errno != EPERM) /* EINVAL: that was the last one; EPERM: the shared level */
        return -1;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL) /* gVisor has no such set */
        return -1;
    return (int)syscall(SYS_capset, &header, none);
}

/* Give up what the process shares with its parent. */
static void leave_parent(void)
{
    setsid();
    /* The supervisor is not dumpable, and a forked process inherits that: its files in /proc would belong
     * to root. */
    prctl(PR_SET_DUMPABLE, 1);
    prefer_for_out_of_memory();
    umask(022);
}

static enum filter filter_for(const struct confinement *confinement)
{
    if (confinement->importer)
        return FILTER_IMPORTER;
    return confinement->shared ? FILTER_SHARED : FILTER_SANDBOX;
}

static int send_listener(int job_socket, int listener)
{
    const char byte = JOB_CONFINED;
    int failed = descriptors_send(job_socket, &byte, 1, &listener, 1, 0);
    close(listener);
    return failed;
}

int confine(const struct confinement *confinement, int job_socket)
{
    int listener;
    leave_parent();
    limit_resources(confinement);
    if (confine_capabilities() || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        filter_install(filter_for(confinement), &listener))
        return -1;
    return listener < 0 ? 0 : send_listener(job_socket, listener);
}

int confine_fork(void)
{
    leave_parent();
    return confine_capabilities();
}
