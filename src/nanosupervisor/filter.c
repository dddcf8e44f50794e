/* See filter.h. A deny list on top of the container's allow list (src/nanoagent/container/seccomp.json).
 *
 * Process 1 of the run's process namespace is ours and has the run's user id: the sandbox's init, or at the
 * shared level the supervisor itself. What protects it: process 1 of a namespace takes no signal it has no
 * handler for, it is not dumpable (no ptrace, no /proc/1/{mem,fd,environ}), and this filter refuses the calls
 * that act on another process by its number without asking either (priorities, limits, affinity).
 *
 * At the shared level it also refuses what would outlive the run: System V IPC and POSIX message queues live
 * in the container, not in a process. In a sandbox they go with its own namespace. And it refuses signals for the
 * supervisor by themselves: gVisor, which has no sandbox within, lets them end process 1 like any other. */
#define _GNU_SOURCE
#include "filter.h"
#include "confine.h"

#include <asm/sockios.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
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

#define NAMESPACES (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | 0x80 /* CLONE_NEWTIME */)
#define OUR_PID 1

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (field))
#define NUMBER offsetof(struct seccomp_data, nr)
/* The low half of an argument; process numbers, flags and families are 32 bits wide. */
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + (n) * 8)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))
#define ERROR(number) RETURN(SECCOMP_RET_ERRNO | (number))
#define IF(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), (yes), (no))
#define IF_ANY_OF(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, (bits), (yes), (no))

/* Each rule starts and ends with the system call's number in the accumulator. */
#define DENY(call) IF(call, 0, 1), ERROR(EPERM)
#define DENY_BITS(call, n, bits) IF(call, 0, 4), LOAD(ARGUMENT(n)), IF_ANY_OF(bits, 0, 1), ERROR(EPERM), LOAD(NUMBER)
#define DENY_IF(call, n, value) IF(call, 0, 4), LOAD(ARGUMENT(n)), IF(value, 0, 1), ERROR(EPERM), LOAD(NUMBER)
#define DENY_ON_OURS(call, n) DENY_IF(call, n, OUR_PID)
#define DENY_UNLESS(call, n, value) IF(call, 0, 4), LOAD(ARGUMENT(n)), IF(value, 1, 0), ERROR(EPERM), LOAD(NUMBER)
#define DENY_UNLESS_OWN(call, n)                                                                              \
    IF(call, 0, 5), LOAD(ARGUMENT(n)), IF(RUN_USER, 2, 0), IF((uint32_t)-1, 1, 0), ERROR(EPERM), LOAD(NUMBER)
#define DENY_OPTION(level, name)                                                                              \
    IF(SYS_setsockopt, 0, 6), LOAD(ARGUMENT(1)), IF(level, 0, 3), LOAD(ARGUMENT(2)), IF(name, 0, 1), ERROR(EPERM), \
        LOAD(NUMBER)

#define IOPRIO_WHO_PROCESS 1 /* linux/ioprio.h */
#ifndef TCP_AO_ADD_KEY
#define TCP_AO_ADD_KEY 38 /* linux/tcp.h, since Linux 6.7 */
#endif

static const struct sock_filter denied[] = {
    LOAD(offsetof(struct seccomp_data, arch)), IF(NATIVE_ARCH, 1, 0), RETURN(SECCOMP_RET_KILL_PROCESS),
    LOAD(NUMBER),
#if defined(__x86_64__)
    /* The x32 ABI: as a call of another architecture. The container's filter would kill the thread alone, and a
     * program that has others would hang until its time is up. */
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1), RETURN(SECCOMP_RET_KILL_PROCESS),
#endif
    /* Its flags lie in memory, where a filter cannot look; C libraries fall back to clone. */
    IF(SYS_clone3, 0, 1), ERROR(ENOSYS),
    /* CLONE_PARENT would make the new process a child of whoever waits for the program: the zygote, outside. */
    DENY_BITS(SYS_clone, 0, NAMESPACES | CLONE_PARENT),
    DENY(SYS_unshare), DENY(SYS_setns),
    DENY(SYS_mount), DENY(SYS_umount2), DENY(SYS_pivot_root), DENY(SYS_chroot), DENY(SYS_open_tree),
    DENY(SYS_move_mount), DENY(SYS_fsopen), DENY(SYS_fsconfig), DENY(SYS_fsmount), DENY(SYS_fspick),
    DENY(SYS_mount_setattr),
    DENY(SYS_keyctl), DENY(SYS_add_key), DENY(SYS_request_key),
    DENY(SYS_bpf), DENY(SYS_perf_event_open), DENY(SYS_userfaultfd),
    DENY(SYS_io_uring_setup), DENY(SYS_io_uring_enter), DENY(SYS_io_uring_register),
    DENY(SYS_ptrace), DENY(SYS_process_vm_readv), DENY(SYS_process_vm_writev), DENY(SYS_process_madvise),
    DENY(SYS_kcmp), DENY(SYS_pidfd_getfd), DENY(SYS_move_pages), DENY(SYS_migrate_pages),
    DENY(SYS_open_by_handle_at), DENY(SYS_name_to_handle_at), DENY(SYS_fanotify_init),
    /* Of all families there is a constructor, and a kernel module that is loaded for it; only UNIX has pairs. */
    DENY_UNLESS(SYS_socketpair, 0, AF_UNIX),
    /* A terminal's line discipline, too, is a module that is loaded for whoever asks. */
    DENY_IF(SYS_ioctl, 1, TIOCSETD),
    /* Compiled filters are counted against a sum for all the host's users who are not root (bpf_jit_limit), and no
     * control group's memory. Once it is used up, none of ours can be installed: no run of anybody would start. */
    DENY_OPTION(SOL_SOCKET, SO_ATTACH_FILTER), DENY_OPTION(SOL_SOCKET, SO_ATTACH_BPF),
    DENY_OPTION(SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF), DENY_OPTION(SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF),
    DENY_IF(SYS_seccomp, 0, SECCOMP_SET_MODE_FILTER), DENY_IF(SYS_prctl, 0, PR_SET_SECCOMP),
    /* What these have the kernel keep, up to 128 KiB for each socket, no control group counts either. */
    DENY_OPTION(IPPROTO_TCP, TCP_MD5SIG), DENY_OPTION(IPPROTO_TCP, TCP_MD5SIG_EXT),
    DENY_OPTION(IPPROTO_TCP, TCP_AO_ADD_KEY), DENY_OPTION(IPPROTO_IPV6, IPV6_2292PKTOPTIONS),
    /* Huge pages that a host sets aside for others are for whoever maps them, and of no control group's memory. */
    DENY_BITS(SYS_mmap, 3, MAP_HUGETLB), DENY_BITS(SYS_memfd_create, 1, MFD_HUGETLB),
    /* A core of one's own: its other threads would stand idle, at nobody's charge. */
    DENY_IF(SYS_prctl, 0, PR_SCHED_CORE),
    DENY(SYS_sethostname), DENY(SYS_setdomainname), DENY(SYS_vmsplice),
    /* They write out whatever the host has not yet written, for as long as its disks take. All that a run can
     * write to is in memory: claim success. */
    IF(SYS_sync, 0, 1), ERROR(0), IF(SYS_syncfs, 0, 1), ERROR(0),
    /* Unlike 1, a core limit of 0 has the host's core_pattern helper run: claim success and change nothing. */
    IF(SYS_setrlimit, 0, 4), LOAD(ARGUMENT(0)), IF(RLIMIT_CORE, 0, 1), ERROR(0), LOAD(NUMBER),
    IF(SYS_prlimit64, 0, 8), LOAD(ARGUMENT(1)), IF(RLIMIT_CORE, 0, 5), LOAD(ARGUMENT(2)), IF(0, 0, 2),
    LOAD(ARGUMENT(2) + 4), IF(0, 1, 0), ERROR(0), LOAD(NUMBER),
    DENY_ON_OURS(SYS_prlimit64, 0),
    DENY_ON_OURS(SYS_sched_setaffinity, 0),
    DENY_ON_OURS(SYS_sched_setscheduler, 0),
    DENY_ON_OURS(SYS_sched_setparam, 0),
    DENY_ON_OURS(SYS_sched_setattr, 0),
    /* "of a user" would reach the supervisor: it has the same. */
    DENY_UNLESS(SYS_setpriority, 0, PRIO_PROCESS),
    DENY_ON_OURS(SYS_setpriority, 1),
    DENY_UNLESS(SYS_ioprio_set, 0, IOPRIO_WHO_PROCESS),
    DENY_ON_OURS(SYS_ioprio_set, 1),
};

static const struct sock_filter denied_when_shared[] = {
    DENY(SYS_shmget), DENY(SYS_shmat), DENY(SYS_shmctl), DENY(SYS_semget), DENY(SYS_semop),
    DENY(SYS_semtimedop), DENY(SYS_semctl), DENY(SYS_msgget), DENY(SYS_msgsnd), DENY(SYS_msgrcv),
    DENY(SYS_msgctl), DENY(SYS_mq_open), DENY(SYS_mq_unlink),
    DENY_ON_OURS(SYS_kill, 0), DENY_ON_OURS(SYS_tkill, 0), DENY_ON_OURS(SYS_tgkill, 0), DENY_ON_OURS(SYS_tgkill, 1),
    DENY_ON_OURS(SYS_rt_sigqueueinfo, 0), DENY_ON_OURS(SYS_rt_tgsigqueueinfo, 0),
    DENY_ON_OURS(SYS_rt_tgsigqueueinfo, 1), DENY_ON_OURS(SYS_pidfd_open, 0),
    /* The signal that a descriptor sends to its owner can be any; -1 is the supervisor's group. What these take
     * from memory, where a filter cannot look, F_SETOWN takes as well. */
    DENY_IF(SYS_fcntl, 1, F_SETOWN_EX), DENY_IF(SYS_ioctl, 1, FIOSETOWN), DENY_IF(SYS_ioctl, 1, SIOCSPGRP),
    IF(SYS_fcntl, 0, 7), LOAD(ARGUMENT(1)), IF(F_SETOWN, 0, 4), LOAD(ARGUMENT(2)), IF(OUR_PID, 1, 0),
    IF((uint32_t)-OUR_PID, 0, 1), ERROR(EPERM), LOAD(NUMBER),
};

static const struct sock_filter denied_in_sandbox[] = {
    /* For an id that the namespace does not have, the kernel returns EINVAL. Programs expect EPERM, which ordinary
     * users get elsewhere. user_namespaces(7) */
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

/* The container's filter allows only NETLINK_ROUTE of netlink, so this filter checks the family alone. */
#define NETLINK(action) IF(SYS_socket, 0, 3), LOAD(ARGUMENT(0)), IF(AF_NETLINK, 0, 1), RETURN(action), LOAD(NUMBER)
static const struct sock_filter hand_netlink_over[] = {NETLINK(SECCOMP_RET_USER_NOTIF)};
static const struct sock_filter deny_netlink[] = {NETLINK(SECCOMP_RET_ERRNO | EPERM)};

static const struct sock_filter allow = RETURN(SECCOMP_RET_ALLOW);

struct program {
    unsigned short length;
    struct sock_filter code[512];
};

static void append(struct program *program, const struct sock_filter *rules, size_t bytes)
{
    memcpy(program->code + program->length, rules, bytes);
    program->length += (unsigned short)(bytes / sizeof *rules);
}

/* The listener, 0 without one, or -1. */
static int install(int shared, int with_listener)
{
    struct program program = {0};
    _Static_assert(sizeof denied + sizeof denied_when_shared + sizeof denied_in_sandbox + sizeof hand_netlink_over +
                   sizeof allow <= sizeof program.code, "the filter has too many rules");
    append(&program, denied, sizeof denied);
    if (shared)
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

int filter_install(int shared, int *listener)
{
    *listener = shared ? -1 : install(0, 1);
    return *listener >= 0 ? 0 : install(shared, 0);
}
