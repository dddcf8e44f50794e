/* See filter.h. A deny list in addition to the container's allow list
 * (src/nanoagent/container/seccomp.json and, for sandboxes, seccomp-sandbox.json).
 *
 * Process 1 of the run's process namespace is the sandbox's init, or at the shared level the supervisor.
 * It has the same user id as the run. Three things protect it from the run. First, it has no signal
 * handlers, and the kernel drops a signal to process 1 of the sender's own namespace if process 1 does not handle
 * it. Second, process 1 is not dumpable, so the run cannot trace it or read /proc/1/{mem,fd,environ}. Third,
 * this filter refuses calls that change another process by its number and that the first two do not prevent:
 * priorities, limits, affinity.
 *
 * At the shared level the filter also refuses System V IPC, POSIX message queues and signals for the
 * supervisor. The IPC objects belong to the container, not to a process, and would outlive the run; in a
 * sandbox the kernel removes them with the namespace. Signals are refused because under gVisor they can end
 * process 1. */
#define _GNU_SOURCE
#include "filter.h"
#include "confine.h"
#include "namespaces.h"

#include <asm/sockios.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "x86-64 and aarch64 only"
#endif

#define NAMESPACES                                                                                      \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |       \
     CLONE_NEWNET | 0x80 /* CLONE_NEWTIME */)
#define PROCESS_1 1 /* the supervisor, or init */

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (field))
#define NUMBER offsetof(struct seccomp_data, nr)
/* The low half of an argument. Process numbers, flags and families have 32 bits. */
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + (n) * 8)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define ERROR(number) RETURN(SECCOMP_RET_ERRNO | (number))
#define IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define IF_ANY_OF(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), (yes), (no))

/* Each rule starts and ends with the system call's number in the accumulator. The last two arguments of IF
 * are the numbers of instructions to skip: if the comparison is true, and if it is false. */
#define DENY(call) IF(call, 0, 1), ERROR(EPERM)
#define DENY_BITS(call, n, bits) IF(call, 0, 4), LOAD(ARGUMENT(n)), IF_ANY_OF(bits, 0, 1), ERROR(EPERM), LOAD(NUMBER)
#define DENY_IF(call, n, value) IF(call, 0, 4), LOAD(ARGUMENT(n)), IF(value, 0, 1), ERROR(EPERM), LOAD(NUMBER)
#define DENY_ON_PROCESS_1(call, n) DENY_IF(call, n, PROCESS_1)
#define DENY_UNLESS(call, n, value) IF(call, 0, 4), LOAD(ARGUMENT(n)), IF(value, 1, 0), ERROR(EPERM), LOAD(NUMBER)
#define DENY_UNLESS_OWN(call, n)                                                                              \
    IF(call, 0, 5), LOAD(ARGUMENT(n)), IF(RUN_USER, 2, 0), IF((uint32_t)-1, 1, 0), ERROR(EPERM), LOAD(NUMBER)
/* A rule for one option of a call, setsockopt or getsockopt. */
#define OPTION_OF(call, level, name, answer)                                                                  \
    IF(call, 0, 6), LOAD(ARGUMENT(1)), IF(level, 0, 3), LOAD(ARGUMENT(2)), IF(name, 0, 1), ERROR(answer), LOAD(NUMBER)
#define DENY_OPTION(level, name) OPTION_OF(SYS_setsockopt, level, name, EPERM)

#define IOPRIO_WHO_PROCESS 1 /* linux/ioprio.h */
#ifndef TCP_AO_ADD_KEY
#define TCP_AO_ADD_KEY 38 /* linux/tcp.h, since Linux 6.7 */
#endif

static const struct sock_filter denied[] = {
    LOAD(offsetof(struct seccomp_data, arch)), IF(NATIVE_ARCH, 1, 0), RETURN(SECCOMP_RET_KILL_PROCESS),
    LOAD(NUMBER),
#if defined(__x86_64__)
    /* Kill the process for a call of the x32 ABI, as for a call of another architecture. The container's filter
     * would kill only the thread, and a program with other threads would hang until its deadline. */
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), RETURN(SECCOMP_RET_KILL_PROCESS),
#endif
    /* The flags of clone3 are in memory, which a filter cannot read. After ENOSYS, C libraries use clone. */
    IF(SYS_clone3, 0, 1), ERROR(ENOSYS),
    /* CLONE_PARENT would make the new process a child of the program's parent: the zygote, outside the
     * sandbox. */
    DENY_BITS(SYS_clone, 0, NAMESPACES | CLONE_PARENT),
    DENY(SYS_unshare),
    DENY(SYS_mount), DENY(SYS_umount2), DENY(SYS_pivot_root), DENY(SYS_chroot), DENY(SYS_open_tree),
    DENY(SYS_move_mount), DENY(SYS_fsopen), DENY(SYS_fsconfig), DENY(SYS_fsmount), DENY(SYS_fspick),
    DENY(SYS_mount_setattr),
    DENY(SYS_keyctl), DENY(SYS_add_key), DENY(SYS_request_key),
    DENY(SYS_bpf), DENY(SYS_perf_event_open), DENY(SYS_userfaultfd),
    DENY(SYS_io_uring_setup), DENY(SYS_io_uring_enter), DENY(SYS_io_uring_register),
    DENY(SYS_ptrace), DENY(SYS_process_vm_readv), DENY(SYS_process_vm_writev), DENY(SYS_process_madvise),
    DENY(SYS_kcmp), DENY(SYS_pidfd_getfd), DENY(SYS_move_pages), DENY(SYS_migrate_pages),
    DENY(SYS_open_by_handle_at), DENY(SYS_name_to_handle_at), DENY(SYS_fanotify_init),
    /* The kernel would load a module for other address families. Programs need socket pairs only of AF_UNIX. */
    DENY_UNLESS(SYS_socketpair, 0, AF_UNIX),
    /* For a terminal's line discipline the kernel would load a module, too. */
    DENY_IF(SYS_ioctl, 1, TIOCSETD),
    /* The kernel counts compiled filters of all the host's ordinary users together (bpf_jit_limit), and in
     * no control group. If a run used up that limit, this filter could not be installed any more, and no
     * run would start. */
    DENY_OPTION(SOL_SOCKET, SO_ATTACH_FILTER), DENY_OPTION(SOL_SOCKET, SO_ATTACH_BPF),
    DENY_OPTION(SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF), DENY_OPTION(SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF),
    DENY_IF(SYS_seccomp, 0, SECCOMP_SET_MODE_FILTER), DENY_IF(SYS_prctl, 0, PR_SET_SECCOMP),
    /* With these options the kernel keeps up to 128 KiB for each socket, which no control group counts. */
    DENY_OPTION(IPPROTO_TCP, TCP_MD5SIG), DENY_OPTION(IPPROTO_TCP, TCP_MD5SIG_EXT),
    DENY_OPTION(IPPROTO_TCP, TCP_AO_ADD_KEY), DENY_OPTION(IPPROTO_IPV6, IPV6_2292PKTOPTIONS),
    /* Any process may map the huge pages that a host has reserved for others, and no control group counts
     * them. */
    DENY_BITS(SYS_mmap, 3, MAP_HUGETLB), DENY_BITS(SYS_memfd_create, 1, MFD_HUGETLB),
    /* PR_SCHED_CORE reserves a CPU core for the run. The core's other hardware threads would be idle, and no
     * control group would be charged for their time. */
    DENY_IF(SYS_prctl, 0, PR_SCHED_CORE),
    DENY(SYS_sethostname), DENY(SYS_setdomainname), DENY(SYS_vmsplice),
    /* These make the host write all its dirty pages, which takes as long as its disks need. All files that
     * a run can write are in memory, so return success and do nothing. */
    IF(SYS_sync, 0, 1), ERROR(0), IF(SYS_syncfs, 0, 1), ERROR(0),
    /* The core limit must stay 1, because with 0 the kernel runs the host's core_pattern helper (confine.c).
     * So return success and do nothing. */
    IF(SYS_setrlimit, 0, 4), LOAD(ARGUMENT(0)), IF(RLIMIT_CORE, 0, 1), ERROR(0), LOAD(NUMBER),
    IF(SYS_prlimit64, 0, 8), LOAD(ARGUMENT(1)), IF(RLIMIT_CORE, 0, 5), LOAD(ARGUMENT(2)), IF(0, 0, 2),
    LOAD(ARGUMENT(2) + 4), IF(0, 1, 0), ERROR(0), LOAD(NUMBER),
    DENY_ON_PROCESS_1(SYS_prlimit64, 0),
    DENY_ON_PROCESS_1(SYS_sched_setaffinity, 0),
    DENY_ON_PROCESS_1(SYS_sched_setscheduler, 0),
    DENY_ON_PROCESS_1(SYS_sched_setparam, 0),
    DENY_ON_PROCESS_1(SYS_sched_setattr, 0),
    /* A priority "of a user" would also change the supervisor, which has the same user id. */
    DENY_UNLESS(SYS_setpriority, 0, PRIO_PROCESS),
    DENY_ON_PROCESS_1(SYS_setpriority, 1),
    DENY_UNLESS(SYS_ioprio_set, 0, IOPRIO_WHO_PROCESS),
    DENY_ON_PROCESS_1(SYS_ioprio_set, 1),
};

static const struct sock_filter deny_setns[] = {DENY(SYS_setns)};
/* All namespaces of a sandbox at once, or none. A run can enter nothing with these flags: the kernel refuses a process
 * that is in the same user namespace, and a run sees no other process. */
static const struct sock_filter limit_setns[] = {DENY_UNLESS(SYS_setns, 1, SANDBOX_NAMESPACES)};

/* A package can put a socket of a run's network into the importer. The importer is in the parent of the user namespace
 * that owns this network, and its user has created it, so the kernel allows it there what needs CAP_NET_ADMIN. These calls
 * are all that a socket of TCP, UDP or AF_UNIX offers for that: the settings of interfaces, the tables of xtables, marks,
 * forced buffer sizes, and the repair of connections. Reads of interfaces are allowed. SO_LINGER has no effect: the
 * supervisor would wait when it closes such a socket that was sent to it. */
#define SOCKET_IOCTLS_FROM 0x8908u
#define SOCKET_IOCTLS_TO 0x89ffu
#define FIRST_TABLE_OPTION 64u
#define JUMP_BELOW(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, (value), (no), (yes))
#define DENY_OPTIONS_FROM(call, level, least)                                                                 \
    IF(call, 0, 6), LOAD(ARGUMENT(1)), IF(level, 0, 3), LOAD(ARGUMENT(2)), JUMP_BELOW(least, 1, 0), ERROR(EPERM), \
        LOAD(NUMBER)
static const struct sock_filter denied_with_importer[] = {
    IF(SYS_ioctl, 0, 17), LOAD(ARGUMENT(1)), JUMP_BELOW(SOCKET_IOCTLS_FROM, 14, 0), JUMP_BELOW(SOCKET_IOCTLS_TO + 1, 0, 13),
    IF(SIOCGIFNAME, 12, 0), IF(SIOCGIFCONF, 11, 0), IF(SIOCGIFFLAGS, 10, 0), IF(SIOCGIFADDR, 9, 0),
    IF(SIOCGIFDSTADDR, 8, 0), IF(SIOCGIFBRDADDR, 7, 0), IF(SIOCGIFNETMASK, 6, 0), IF(SIOCGIFMETRIC, 5, 0),
    IF(SIOCGIFMTU, 4, 0), IF(SIOCGIFHWADDR, 3, 0), IF(SIOCGIFINDEX, 2, 0), IF(SIOCGIFTXQLEN, 1, 0),
    ERROR(EPERM), LOAD(NUMBER),
    DENY_OPTIONS_FROM(SYS_setsockopt, SOL_IP, FIRST_TABLE_OPTION),
    DENY_OPTIONS_FROM(SYS_getsockopt, SOL_IP, FIRST_TABLE_OPTION),
    DENY_OPTION(SOL_IP, IP_TRANSPARENT),
    /* The options 66 to 78 of IPv6 that are not listed here need no capability. */
    DENY_OPTIONS_FROM(SYS_setsockopt, SOL_IPV6, 79), DENY_OPTIONS_FROM(SYS_getsockopt, SOL_IPV6, 79),
    DENY_OPTION(SOL_IPV6, 64), DENY_OPTION(SOL_IPV6, 65),
    OPTION_OF(SYS_getsockopt, SOL_IPV6, 64, EPERM), OPTION_OF(SYS_getsockopt, SOL_IPV6, 65, EPERM),
    OPTION_OF(SYS_getsockopt, SOL_IPV6, 68, EPERM), OPTION_OF(SYS_getsockopt, SOL_IPV6, 69, EPERM),
    DENY_OPTION(SOL_IPV6, IPV6_TRANSPARENT),
    DENY_OPTION(SOL_SOCKET, SO_MARK), DENY_OPTION(SOL_SOCKET, SO_SNDBUFFORCE),
    DENY_OPTION(SOL_SOCKET, SO_RCVBUFFORCE), DENY_OPTION(SOL_SOCKET, SO_BUSY_POLL),
    DENY_OPTION(SOL_TCP, TCP_REPAIR), DENY_OPTION(SOL_TCP, TCP_REPAIR_QUEUE),
    DENY_OPTION(SOL_TCP, TCP_QUEUE_SEQ), DENY_OPTION(SOL_TCP, TCP_REPAIR_OPTIONS),
    DENY_OPTION(SOL_TCP, TCP_REPAIR_WINDOW),
    OPTION_OF(SYS_setsockopt, SOL_SOCKET, SO_LINGER, 0),
};

static const struct sock_filter denied_when_shared[] = {
    DENY(SYS_shmget), DENY(SYS_shmat), DENY(SYS_shmctl), DENY(SYS_semget), DENY(SYS_semop),
    DENY(SYS_semtimedop), DENY(SYS_semctl), DENY(SYS_msgget), DENY(SYS_msgsnd), DENY(SYS_msgrcv),
    DENY(SYS_msgctl), DENY(SYS_mq_open), DENY(SYS_mq_unlink),
    DENY_ON_PROCESS_1(SYS_kill, 0), DENY_ON_PROCESS_1(SYS_tkill, 0), DENY_ON_PROCESS_1(SYS_tgkill, 0),
    DENY_ON_PROCESS_1(SYS_tgkill, 1),
    DENY_ON_PROCESS_1(SYS_rt_sigqueueinfo, 0), DENY_ON_PROCESS_1(SYS_rt_tgsigqueueinfo, 0),
    DENY_ON_PROCESS_1(SYS_rt_tgsigqueueinfo, 1), DENY_ON_PROCESS_1(SYS_pidfd_open, 0),
    /* A descriptor can send any signal to its owner, and owner -1 is the supervisor's process group. The
     * first three calls read the owner from memory, where a filter cannot look. F_SETOWN does the same
     * with an argument. */
    DENY_IF(SYS_fcntl, 1, F_SETOWN_EX), DENY_IF(SYS_ioctl, 1, FIOSETOWN), DENY_IF(SYS_ioctl, 1, SIOCSPGRP),
    IF(SYS_fcntl, 0, 7), LOAD(ARGUMENT(1)), IF(F_SETOWN, 0, 4), LOAD(ARGUMENT(2)), IF(PROCESS_1, 1, 0),
    IF((uint32_t)-PROCESS_1, 0, 1), ERROR(EPERM), LOAD(NUMBER),
};

static const struct sock_filter denied_in_sandbox[] = {
    /* For an id that is not in the user namespace, the kernel returns EINVAL. Programs expect EPERM, which
     * ordinary users get elsewhere. user_namespaces(7) */
    DENY_UNLESS_OWN(SYS_setuid, 0), DENY_UNLESS_OWN(SYS_setgid, 0),
    DENY_UNLESS_OWN(SYS_setreuid, 0), DENY_UNLESS_OWN(SYS_setreuid, 1),
    DENY_UNLESS_OWN(SYS_setregid, 0), DENY_UNLESS_OWN(SYS_setregid, 1),
    DENY_UNLESS_OWN(SYS_setresuid, 0), DENY_UNLESS_OWN(SYS_setresuid, 1), DENY_UNLESS_OWN(SYS_setresuid, 2),
    DENY_UNLESS_OWN(SYS_setresgid, 0), DENY_UNLESS_OWN(SYS_setresgid, 1), DENY_UNLESS_OWN(SYS_setresgid, 2),
    DENY_UNLESS_OWN(SYS_fchown, 1), DENY_UNLESS_OWN(SYS_fchown, 2),
    DENY_UNLESS_OWN(SYS_fchownat, 2), DENY_UNLESS_OWN(SYS_fchownat, 3),
#if defined(__x86_64__)
    DENY_UNLESS_OWN(SYS_chown, 1), DENY_UNLESS_OWN(SYS_chown, 2),
    DENY_UNLESS_OWN(SYS_lchown, 1), DENY_UNLESS_OWN(SYS_lchown, 2),
#endif
};

/* Of the protocols of netlink, the container's filter allows only NETLINK_ROUTE. So this filter checks only the
 * family. */
#define NETLINK(action) IF(SYS_socket, 0, 3), LOAD(ARGUMENT(0)), IF(AF_NETLINK, 0, 1), RETURN(action), LOAD(NUMBER)
static const struct sock_filter hand_netlink_over[] = {NETLINK(SECCOMP_RET_USER_NOTIF)};
static const struct sock_filter deny_netlink[] = {NETLINK(SECCOMP_RET_ERRNO | EPERM)};

static const struct sock_filter allow = RETURN(SECCOMP_RET_ALLOW);

struct program {
    unsigned short length;
    struct sock_filter code[1024];
};

static void append(struct program *program, const struct sock_filter *rules, size_t bytes)
{
    memcpy(program->code + program->length, rules, bytes);
    program->length += (unsigned short)(bytes / sizeof *rules);
}

/* Install the filter. Return the listener's descriptor, or 0 without one; -1 with errno. */
static int install(enum filter kind, int with_listener)
{
    struct program program = {0};
    _Static_assert(sizeof denied + sizeof limit_setns + sizeof denied_with_importer + sizeof denied_in_sandbox +
                       sizeof hand_netlink_over + sizeof allow <= sizeof program.code,
                   "the filter of an importer has too many rules");
    _Static_assert(sizeof denied + sizeof limit_setns + sizeof denied_when_shared + sizeof hand_netlink_over +
                       sizeof allow <= sizeof program.code, "the filter has too many rules");
    append(&program, denied, sizeof denied);
    if (kind == FILTER_IMPORTER) {
        append(&program, limit_setns, sizeof limit_setns);
        append(&program, denied_with_importer, sizeof denied_with_importer);
    } else {
        append(&program, deny_setns, sizeof deny_setns);
    }
    if (kind == FILTER_SHARED)
        append(&program, denied_when_shared, sizeof denied_when_shared);
    else
        append(&program, denied_in_sandbox, sizeof denied_in_sandbox);
    append(&program, with_listener ? hand_netlink_over : deny_netlink, sizeof deny_netlink);
    append(&program, &allow, sizeof allow);
    struct sock_fprog filter = {program.length, program.code};
    if (!with_listener)
        return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0);
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
}

int filter_install(enum filter kind, int *listener)
{
    int unused, *listens = listener ? listener : &unused;
    *listens = kind == FILTER_SHARED || !listener ? -1 : install(kind, 1);
    return *listens >= 0 ? 0 : install(kind, 0);
}
