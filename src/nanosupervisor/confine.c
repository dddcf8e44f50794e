/* See confine.h. Used by the supervisor and, in the Python image, by the zygote's extension module. */
#define _GNU_SOURCE
#include "confine.h"
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void limit(int resource, uint64_t value)
{
    struct rlimit both = {value, value};
    setrlimit(resource, &both);
}

/* The kernel kills the run, never the supervisor. A host that forbids it loses one preference, not the run. */
static void prefer_for_out_of_memory(void)
{
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
        if (write(file, "1000", 4) < 0)
            errno = 0;
        close(file);
    }
}

/* Capabilities are of the sandbox's user namespace alone, and the program is to have not even those. Where
 * there was none to begin with (level L1), the bounding set cannot be changed and need not be. */
int confine_capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2];
    memset(none, 0, sizeof none);
    int capability = 0;
    while (!prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
        capability++;
    if (errno != EINVAL && errno != EPERM) /* there is no more of them; or level L1 */
        return -1;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL) /* gVisor has no such set */
        return -1;
    return (int)syscall(SYS_capset, &header, none);
}

/* Send the listener of this process's filter over the job's socket. */
static int send_listener(int job, int listener)
{
    char room[CMSG_SPACE(sizeof listener)] = {0}, byte = CONFINED;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof listener);
    memcpy(CMSG_DATA(header), &listener, sizeof listener);
    int failed = sendmsg(job, &message, MSG_NOSIGNAL) < 0;
    close(listener);
    return failed ? -1 : 0;
}

int confine(const struct confinement *confinement, int job)
{
    setsid();
    /* The supervisor is not dumpable, and a fork inherits that: /proc/self would belong to root. */
    prctl(PR_SET_DUMPABLE, 1);
    prefer_for_out_of_memory();
    /* One byte, not none: with a core_pattern that is a pipe, 0 still runs the host's helper; 1 does not.
     * Into a file nothing is written below a page. fs/coredump.c */
    limit(RLIMIT_CORE, 1);
    limit(RLIMIT_FSIZE, confinement->file_size_bytes);
    limit(RLIMIT_NOFILE, confinement->open_files);
    limit(RLIMIT_MEMLOCK, 64 * 1024); /* locked pages cannot be reclaimed; the kernel's old default */
    /* Timers and queued signals; by default tens of thousands, which take the kernel seconds to let go of. */
    limit(RLIMIT_SIGPENDING, 4096);
    if (confinement->shared)
        limit(RLIMIT_MSGQUEUE, 0);
    umask(022);
    if (confine_capabilities() || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    int listener = -1;
    if (filter_install(confinement->shared, &listener))
        return -1;
    return listener < 0 ? 0 : send_listener(job, listener);
}
