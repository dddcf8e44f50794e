/* See sandbox.h.
 *
 * Order of things, for one sandbox:
 *   supervisor  clone() with all namespaces at once
 *   init        maps its user, mounts, forks the parked process (unless a zygote does), sends its places' folders
 *   supervisor  takes the listener of the parked process's filter and passes it to init, waits for the process's 'r';
 *               much later, when there is code, has init attach it
 *   init        mounts the code, gives up its own capabilities, stops being dumpable
 *   supervisor  writes the payload, sends the job to the parked process
 *   init        waits for it, kills everyone else, tells its status; meanwhile serves netlink.h
 *   supervisor  reports the run, and then kills init: taking namespaces apart takes as long as a short run
 *
 * user_namespaces(7), pid_namespaces(7), mount_namespaces(7); overlay in a user namespace: kernel ≥ 5.11 and
 * the kernel's Documentation/filesystems/overlayfs.rst, "User xattr". */
#define _GNU_SOURCE
#include "sandbox.h"
#include "capture.h"
#include "netlink.h"
#include "zygote.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define CONTROL 3 /* init's descriptors; those above serve to set up and are closed then */
#define JOB 3     /* the parked process's */
#define LOOPBACK_INDEX 1 /* the first interface of every network namespace */
#define SLOT_DIR "/slot"
#define SLOT_PROGRAM SLOT_DIR "/program"
/* A folder of the images: empty, root's. */
#define EMPTY_DIR "/nanosupervisor/empty"
#define CHEAP_FILES 16u /* with the root */
#define CHEAP_BYTES (256u << 10)
#define PLAIN (MS_NOSUID | MS_NODEV)
#define SEALED (MS_NOSUID | MS_NODEV | MS_NOEXEC)

uint64_t sandbox_work_bytes, sandbox_work_files;

const unsigned sandbox_namespaces =
    CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET;

/* Messages of the supervisor to init, of one byte each. */
enum command {
    COMMAND_ATTACH_CODE = 'A',
    COMMAND_SERVE_NETLINK = 'N', /* comes with the filter's listener */
    COMMAND_TERMINATE = 'T',     /* send SIGTERM to everyone */
    COMMAND_END_EVERYONE = 'K',
};

/* Messages of init to the supervisor. */
enum report_type {
    REPORT_MADE = 'R', /* comes with descriptors */
    REPORT_ATTACHED = 'A',
    REPORT_PROGRAM_ENDED = 'X', /* value: its wait status */
    REPORT_EVERYONE_ENDED = 'G',
    REPORT_ERROR = 'E', /* value: errno */
};

struct report {
    char type;
    int32_t value;
    char step[48];
};

static void report(enum report_type type, int32_t value, const char *step)
{
    struct report report = {.type = (char)type, .value = value};
    snprintf(report.step, sizeof report.step, "%s", step);
    send(CONTROL, &report, sizeof report, MSG_NOSIGNAL);
}

/* In init: nothing can go on without this step. */
static void must(int failed, const char *step)
{
    if (!failed)
        return;
    report(REPORT_ERROR, errno, step);
    _exit(1);
}

/* ---- user namespaces ---------------------------------------------------------------------------------- */

static int write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    ssize_t written = write(file, text, strlen(text));
    close(file);
    return written == (ssize_t)strlen(text) ? 0 : -1;
}

/* Of the new user namespace that the caller is in: one user, one group. */
static int map_user(uid_t outside_user, gid_t outside_group)
{
    char users[64], groups[64];
    snprintf(users, sizeof users, "%d %u 1", RUN_USER, outside_user);
    snprintf(groups, sizeof groups, "%d %u 1", RUN_USER, outside_group);
    /* A process whose capabilities have changed is not dumpable: its files in /proc would be root's. */
    prctl(PR_SET_DUMPABLE, 1);
    return write_file("/proc/self/setgroups", "deny") || write_file("/proc/self/uid_map", users) ||
           write_file("/proc/self/gid_map", groups);
}

/* ---- mounts ------------------------------------------------------------------------------------------- */

/* What Docker masks and makes read-only in the /proc that it mounts (moby, oci/defaults.go), what the kernel
 * has opened to everyone since, and the locks of the whole host: here in a /proc of our own. */
static const char *const hidden[] = {
    "/proc/asound",       "/proc/acpi",        "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/locks",      "/proc/sched_debug", "/proc/scsi",       "/proc/timer_list",
    /* The kernel's command line, where passwords may stand as well, and files that the host swaps to. */
    "/proc/cmdline",      "/proc/swaps",
};
static const char *const read_only[] = {
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger",
};
/* The same of /sys, which a sandbox shares with its container; and what names files of the host (of loop devices)
 * and the machine (on EC2, its instance id). */
static const char *const hidden_in_sys[] = {
    "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/devices/virtual/block", "/sys/devices/virtual/dmi",
    "/sys/hypervisor",
};

/* Cover a file or a folder; what this kernel does not have need not be hidden. */
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

/* Ports below 1024 are for root in a shared network. This network belongs to the run alone. If the kernel refuses, they
 * stay root's. ip-sysctl.rst */
static void allow_low_ports(void)
{
    write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
}

static void mount_proc(void)
{
    must(mount("proc", "/proc", "proc", SEALED, NULL), "mount /proc");
    allow_low_ports(); /* before /proc/sys is read-only */
    for (size_t i = 0; i < sizeof hidden / sizeof *hidden; i++)
        must(hide(hidden[i]), hidden[i]);
    for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
        must(make_read_only(read_only[i]), read_only[i]);
}

static void mount_tmpfs(const char *where, unsigned long flags, uint64_t bytes, uint64_t files)
{
    char options[96];
    snprintf(options, sizeof options, "mode=1777,size=%llu,nr_inodes=%llu", (unsigned long long)bytes,
             (unsigned long long)files);
    must(mount("tmpfs", where, "tmpfs", PLAIN | flags, options), where);
}

/* A tmpfs as large as the container's own of that place. */
static void mount_like(enum place place, const char *where, unsigned long flags)
{
    struct statfs size;
    must(fstatfs(container_tree.place[place], &size), "fstatfs");
    mount_tmpfs(where, flags, (uint64_t)size.f_blocks * (uint64_t)size.f_bsize, size.f_files);
}

static int open_place(const char *path)
{
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(folder < 0, path);
    return folder;
}

/* Where the kernel's tmpfs has no extended attributes (before 6.6) an overlay cannot replace folders. */
static int has_attributes(int layer)
{
    return !fsetxattr(layer, "user.nanoagent", "", 0, 0);
}

/* The private layer over the code is a tmpfs that is mounted nowhere a program could go. */
static int open_layer(void)
{
    mount_tmpfs("/tmp", 0, sandbox_work_bytes, sandbox_work_files); /* to be covered by the real one */
    int layer = open_place("/tmp");
    if (!has_attributes(layer))
        mount_like(PLACE_WORK, "/tmp", MS_REMOUNT); /* the code is copied here, too */
    return layer;
}

static void mount_places(struct tree *tree)
{
    tree->place[PLACE_WORK] = open_layer();
    for (int place = 0; place < PLACE_COUNT; place++) {
        if (place == PLACE_WORK)
            continue;
        mount_like(place, place_path[place], 0);
        tree->place[place] = open_place(place_path[place]);
    }
    must(mount("mqueue", "/dev/mqueue", "mqueue", SEALED, NULL), "mount /dev/mqueue");
    /* Terminals are counted for the whole host; a run gets a few of its own. */
    must(mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,max=64"), "mount /dev/pts");
}

/* Mount a layer over a folder: what is written goes to layer/NAME. */
static int overlay(const char *folder, int layer, const char *name, unsigned long flags)
{
    char scratch[64], options[256];
    snprintf(scratch, sizeof scratch, "%s.scratch", name);
    must(mkdirat(layer, name, 0755) || mkdirat(layer, scratch, 0755), "mkdir");
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=/proc/self/fd/%d/%s,workdir=/proc/self/fd/%d/%s,userxattr",
             folder, layer, name, layer, scratch);
    return mount("overlay", folder, "overlay", flags, options);
}

/* Whether a copy of the code takes no longer than a layer over it: 12 µs for each file, against 0.3 ms to mount and
 * unmount a layer. */
static int is_cheap_to_copy(int code)
{
    struct statfs used;
    return !fstatfs(code, &used) && used.f_files - used.f_ffree <= CHEAP_FILES &&
           (used.f_blocks - used.f_bfree) * (uint64_t)used.f_bsize <= CHEAP_BYTES;
}

static void copy_code(int code, int layer)
{
    char private[64];
    struct ready_report copied = {0};
    must(mkdirat(layer, "copy", 0755), "mkdir");
    snprintf(private, sizeof private, "/proc/self/fd/%d/copy", layer);
    must(mount(private, WORK_DIR, NULL, MS_BIND, NULL), "bind the code's folder");
    int copy = open_place(WORK_DIR);
    must(tree_copy(code, copy, &copied), "copy the code");
    close(copy);
}

/* The run's code, writable: a copy of a small tree, which behaves like any folder, else a layer. In a layer a folder of
 * the code cannot be renamed (EXDEV): that needs redirects, which the kernel refuses to ordinary users. Files have
 * another device than folders there: the option xino would change that, but with it the kernel logs a line for each
 * mount. overlayfs.rst */
static void mount_code(int layer)
{
    int code = open_place(WORK_DIR);
    if (!is_cheap_to_copy(code) && has_attributes(layer) && !overlay(WORK_DIR, layer, "code", PLAIN))
        close(code);
    else
        copy_code(code, layer); /* closes it */
}

/* The slot folder is the host's, and its files may be links to what other containers have as well: a lock on
 * one would reach them. The program is seen through a layer, everything else not at all. */
static void mount_slot(int layer)
{
    if (access(SLOT_PROGRAM, F_OK)) {
        must(mount("tmpfs", SLOT_DIR, "tmpfs", SEALED | MS_RDONLY, "size=4k,mode=555"), "cover the slot folder");
        return;
    }
    if (overlay(SLOT_DIR, layer, "slot", PLAIN | MS_RDONLY))
        errno = 0; /* a file system that cannot be a lower layer: the program is shared, as at the lower level */
}

/* ---- the parked process ------------------------------------------------------------------------------- */

/* The one descriptor that came with a message, or -1. */
static int take_descriptor(struct msghdr *message)
{
    struct cmsghdr *header = CMSG_FIRSTHDR(message);
    int descriptor = -1;
    if (header && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof descriptor))
        memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    return descriptor;
}

static void receive(int from, void *buffer, size_t length)
{
    for (char *at = buffer; length;) {
        ssize_t got = read(from, at, length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(0); /* there will be no job */
        at += got;
        length -= (size_t)got;
    }
}

static char **split(char **at, uint32_t count)
{
    char **strings = calloc(count + 1u, sizeof *strings);
    for (uint32_t i = 0; strings && i < count; i++) {
        strings[i] = *at;
        *at += strlen(*at) + 1;
    }
    return strings;
}

/* Wait for the job and become its program. */
__attribute__((noreturn)) static void wait_for_job(void)
{
    struct job job;
    if (write(JOB, "r", 1) != 1)
        _exit(0);
    receive(JOB, &job, sizeof job);
    char *strings = malloc(job.length + 1u);
    if (strings) {
        receive(JOB, strings, job.length);
        strings[job.length] = 0;
        char **arguments = split(&strings, job.argument_count);
        char **environment = split(&strings, job.environment_count);
        if (arguments && environment && !chdir(WORK_DIR)) {
            fcntl(JOB, F_SETFD, FD_CLOEXEC);
            execve(arguments[0], arguments, environment);
        }
    }
    uint32_t error = (uint32_t)errno;
    if (write(JOB, &error, sizeof error) < 0)
        _exit(126);
    _exit(127);
}

/* Descriptors that a sandbox is made with. */
struct ends {
    int control;
    int parked[PARKED_END_COUNT]; /* all -1: init forks no parked process */
};

__attribute__((noreturn)) static void be_parked(const struct ends *ends, const struct confinement *confinement,
                                                const struct interpreter *interpreter)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    const int *own = ends->parked;
    must(dup2(own[PARKED_IN], 0) < 0 || dup2(own[PARKED_OUT], 1) < 0 || dup2(own[PARKED_ERR], 2) < 0, "descriptors");
    must(confine(confinement, own[PARKED_JOB]), "confine");
    dup2(own[PARKED_JOB], JOB); /* over the control socket: from here on errors are for the job's reader */
    close_range(JOB + 1, ~0u, 0);
    if (interpreter->kind == KIND_EXEC)
        wait_for_job();
    execve(interpreter->words[0], interpreter->words, interpreter_environment);
    _exit(127);
}

/* ---- init --------------------------------------------------------------------------------------------- */

/* Put the descriptors where constants say, above whatever is open, and close the rest. */
static void keep_ends(struct ends *ends)
{
    enum { ABOVE = 100, MOST = 1 + PARKED_END_COUNT + PLACE_COUNT };
    int *kept[MOST], count = 0;
    kept[count++] = &ends->control;
    for (int end = 0; end < PARKED_END_COUNT; end++)
        if (ends->parked[end] >= 0)
            kept[count++] = &ends->parked[end];
    for (int place = 0; place < PLACE_COUNT; place++)
        kept[count++] = &container_tree.place[place];
    for (int i = 0; i < count; i++)
        *kept[i] = fcntl(*kept[i], F_DUPFD, ABOVE);
    close_range(0, ABOVE - 1, 0);
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1);
    dup2(null, 2);
    for (int i = 0; i < count; i++)
        *kept[i] = dup2(*kept[i], CONTROL + i);
    close_range((unsigned)(CONTROL + count), ~0u, 0);
}

/* A second address beside 127.0.0.1, for programs that resolve names with AI_ADDRCONFIG: the C library then asks
 * netlink for addresses, and resolves no names if 127.0.0.1 is the only one. sysdeps/unix/sysv/linux/check_pf.c */
static void give_loopback_an_address(void)
{
    struct {
        struct nlmsghdr header;
        struct ifaddrmsg body;
        struct rtattr local;
        struct in_addr address;
    } request = {
        .header = {sizeof request, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0},
        .body = {.ifa_family = AF_INET, .ifa_prefixlen = 8, .ifa_scope = RT_SCOPE_HOST, .ifa_index = LOOPBACK_INDEX},
        .local = {RTA_LENGTH(sizeof request.address), IFA_LOCAL},
        .address = {htonl(INADDR_LOOPBACK + 1)},
    };
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
    } answer = {.error = {.error = -EIO}};
    int route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int failed = route < 0 || send(route, &request, sizeof request, 0) < 0 || recv(route, &answer, sizeof answer, 0) < 0;
    if (!failed)
        errno = -answer.error.error;
    must(failed || errno, "give loopback an address");
    close(route);
}

static void bring_loopback_up(void)
{
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    int inet = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    must(inet < 0 || ioctl(inet, SIOCSIFFLAGS, &loopback), "bring up loopback");
    close(inet);
    give_loopback_an_address();
}

/* The descriptors that a sandbox's report that it is made comes with: first its places, then its listening sockets. */
#define MOST_DESCRIPTORS (PLACE_COUNT + MAX_LISTENING_SOCKETS)

static void send_places_and_sockets(const struct tree *tree, const struct listening_sockets *sockets)
{
    struct report made = {.type = REPORT_MADE};
    int handed[MOST_DESCRIPTORS];
    size_t count = PLACE_COUNT;
    memcpy(handed, tree->place, sizeof tree->place);
    for (unsigned i = 0; i < MAX_LISTENING_SOCKETS; i++)
        if (sockets->socket[i] >= 0) {
            made.value |= 1 << i;
            handed[count++] = sockets->socket[i];
        }
    char room[CMSG_SPACE(sizeof handed)] = {0};
    struct iovec part = {&made, sizeof made};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room,
                             .msg_controllen = CMSG_SPACE(count * sizeof *handed)};
    struct cmsghdr *descriptors = CMSG_FIRSTHDR(&message);
    descriptors->cmsg_level = SOL_SOCKET;
    descriptors->cmsg_type = SCM_RIGHTS;
    descriptors->cmsg_len = CMSG_LEN(count * sizeof *handed);
    memcpy(CMSG_DATA(descriptors), handed, count * sizeof *handed);
    must(sendmsg(CONTROL, &message, MSG_NOSIGNAL) < 0, "send the places");
}

/* End every process but our own. A fork that is under way fails once its process has been signalled, so that
 * one pass reaches all. kernel/fork.c */
static void end_everyone(void)
{
    kill(-1, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

/* Reap whoever has ended; the program's own end is told, when it is everyone's. */
static void reap(pid_t program)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == program) {
            end_everyone();
            report(REPORT_PROGRAM_ENDED, status, "");
        }
}

/* The next command, and the descriptor that comes with it, else -1. */
static enum command receive_command(int *descriptor)
{
    char command = 0, room[CMSG_SPACE(sizeof *descriptor)];
    struct iovec part = {&command, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    if (recvmsg(CONTROL, &message, MSG_CMSG_CLOEXEC) <= 0)
        _exit(0); /* the supervisor is gone, and the container with it */
    *descriptor = take_descriptor(&message);
    return (enum command)command;
}

static void attach_code(int layer)
{
    mount_code(layer);
    mount_slot(layer);
    close(layer);
    /* From now on there may be a program. It has our user id, so leave nothing here to take over. */
    must(prctl(PR_SET_DUMPABLE, 0) || confine_capabilities(), "give up capabilities");
    report(REPORT_ATTACHED, 0, "");
}

static void obey(int layer, int *listener)
{
    int descriptor;
    switch (receive_command(&descriptor)) {
    case COMMAND_ATTACH_CODE:
        attach_code(layer);
        break;
    case COMMAND_SERVE_NETLINK:
        *listener = descriptor;
        break;
    case COMMAND_TERMINATE:
        kill(-1, SIGTERM);
        break;
    case COMMAND_END_EVERYONE:
        end_everyone();
        report(REPORT_EVERYONE_ENDED, 0, "");
        break;
    }
}

__attribute__((noreturn)) static void serve(pid_t program, int children, int layer)
{
    int listener = -1; /* of the run's filter */
    for (;;) {
        struct pollfd events[] = {{CONTROL, POLLIN, 0}, {children, POLLIN, 0}, {listener, POLLIN, 0}};
        struct signalfd_siginfo ignored;
        reap(program);
        poll(events, 3, -1);
        if (events[1].revents && read(children, &ignored, sizeof ignored) < 0)
            errno = 0;
        /* POLLHUP: no process has the filter any more. */
        if (events[2].revents && (!(events[2].revents & POLLIN) || !netlink_serve(listener))) {
            close(listener);
            listener = -1;
        }
        if (events[0].revents)
            obey(layer, &listener);
    }
}

__attribute__((noreturn)) static void be_init(struct ends ends, const struct confinement *confinement,
                                              const struct interpreter *interpreter)
{
    struct tree tree;
    struct listening_sockets listening;
    sigset_t child;
    keep_ends(&ends);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    must(map_user(RUN_USER, RUN_USER), "map the user of a sandbox");
    mount_places(&tree);
    mount_proc();
    must(sethostname("sandbox", 7), "sethostname");
    bring_loopback_up();

    pid_t program = -1;
    if (ends.parked[PARKED_JOB] >= 0) {
        program = fork();
        must(program < 0, "fork");
        if (program == 0)
            be_parked(&ends, confinement, interpreter);
        for (int end = 0; end < PARKED_END_COUNT; end++)
            close(ends.parked[end]);
    }
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    int children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    must(children < 0, "signalfd");
    listening_open(&listening); /* only now: nobody has been forked with a copy */
    send_places_and_sockets(&tree, &listening);
    listening_close(&listening);
    for (int place = 0; place < PLACE_COUNT; place++) {
        close(container_tree.place[place]);
        if (place != PLACE_WORK)
            close(tree.place[place]);
    }
    serve(program, children, tree.place[PLACE_WORK]);
}

/* ---- the supervisor's side ---------------------------------------------------------------------------- */

/* Take the descriptors that came with the report of a sandbox that is made. */
static void take_descriptors(struct msghdr *message, const struct report *report, struct sandbox *sandbox)
{
    struct cmsghdr *descriptors = CMSG_FIRSTHDR(message);
    size_t count = PLACE_COUNT + (size_t)__builtin_popcount((unsigned)report->value);
    if (!descriptors || descriptors->cmsg_type != SCM_RIGHTS || descriptors->cmsg_len != CMSG_LEN(count * sizeof(int)))
        return;
    int handed[MOST_DESCRIPTORS];
    memcpy(handed, CMSG_DATA(descriptors), count * sizeof *handed);
    memcpy(sandbox->tree.place, handed, sizeof sandbox->tree.place);
    const int *next = handed + PLACE_COUNT;
    for (unsigned i = 0; i < MAX_LISTENING_SOCKETS; i++)
        sandbox->listening.socket[i] = report->value & 1 << i ? *next++ : -1;
}

/* Receive a report, and what comes with it for a sandbox that is being made. */
static int receive_report(int control, struct report *report, struct sandbox *made)
{
    char room[CMSG_SPACE(MOST_DESCRIPTORS * sizeof(int))] = {0};
    struct iovec part = {report, sizeof *report};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t got;
    do
        got = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got != sizeof *report) {
        *report = (struct report){.type = REPORT_ERROR, .value = got < 0 ? errno : ECHILD, .step = "a sandbox ended"};
        return 0;
    }
    if (made && report->type == REPORT_MADE)
        take_descriptors(&message, report, made);
    return 1;
}

/* Wait for one kind of report; 0 with an error's report in its place. */
static int await_report(int control, enum report_type type, struct report *report, struct sandbox *made)
{
    while (receive_report(control, report, made) && report->type != REPORT_ERROR)
        if (report->type == (char)type)
            return 1;
    return 0;
}

__attribute__((noreturn)) static void die_of(const struct report *report)
{
    errno = report->value;
    die("a sandbox cannot be made: %s", report->step);
}

static int make(struct sandbox *sandbox, const struct confinement *confinement,
                const struct interpreter *interpreter, struct report *failure)
{
    int control[2], job[2], in[2], out[2], err[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, job) || pipe2(in, O_CLOEXEC) || capture_pipe(out) ||
        capture_pipe(err))
        die("no pipes");
    *sandbox = (struct sandbox){.control = control[0], .job = job[0], .in = in[1], .out = out[0], .err = err[0]};
    memset(&sandbox->listening, -1, sizeof sandbox->listening);
    const int parked[PARKED_END_COUNT] = {job[1], in[0], out[1], err[1]};
    struct ends ends = {control[1], {-1, -1, -1, -1}};
    if (interpreter->kind != KIND_ZYGOTE)
        memcpy(ends.parked, parked, sizeof parked);
    sandbox->init = (pid_t)syscall(SYS_clone, (unsigned long)(sandbox_namespaces | CLONE_PIDFD | SIGCHLD), NULL,
                                   &sandbox->process, NULL, 0);
    if (sandbox->init == 0)
        be_init(ends, confinement, interpreter);
    if (sandbox->init < 0) {
        *failure = (struct report){.type = REPORT_ERROR, .value = errno, .step = "clone with new namespaces"};
        return 0;
    }
    int made = (close(control[1]), await_report(control[0], REPORT_MADE, failure, sandbox));
    if (made && interpreter->kind == KIND_ZYGOTE)
        sandbox->program = zygote_fork(sandbox->process, parked, confinement);
    for (int end = 0; end < PARKED_END_COUNT; end++)
        close(parked[end]);
    return made;
}

void sandbox_open(struct sandbox *sandbox, const struct confinement *confinement, const struct interpreter *interpreter)
{
    struct report failure;
    if (!make(sandbox, confinement, interpreter, &failure))
        die_of(&failure);
}

static void command(const struct sandbox *sandbox, enum command command)
{
    char byte = (char)command;
    send(sandbox->control, &byte, 1, MSG_NOSIGNAL);
}

/* Pass a parked process's filter on to init, which is in its network. */
static void pass_listener_on(const struct sandbox *sandbox, int listener)
{
    char room[CMSG_SPACE(sizeof listener)] = {0}, byte = COMMAND_SERVE_NETLINK;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof listener);
    memcpy(CMSG_DATA(header), &listener, sizeof listener);
    sendmsg(sandbox->control, &message, MSG_NOSIGNAL);
    close(listener);
}

int sandbox_is_ready(struct sandbox *sandbox)
{
    char byte, room[CMSG_SPACE(sizeof(int))];
    ssize_t got;
    do {
        struct iovec part = {&byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
        got = recvmsg(sandbox->job, &message, MSG_CMSG_CLOEXEC);
        if (got == 1 && byte == CONFINED)
            pass_listener_on(sandbox, take_descriptor(&message));
    } while ((got < 0 && errno == EINTR) || (got == 1 && byte == CONFINED));
    return got == 1 && byte == 'r';
}

void sandbox_attach_code(struct sandbox *sandbox)
{
    struct report report;
    command(sandbox, COMMAND_ATTACH_CODE);
    if (!await_report(sandbox->control, REPORT_ATTACHED, &report, NULL))
        die_of(&report);
}

int sandbox_start(struct sandbox *sandbox, const struct job *job, const char *strings)
{
    struct iovec parts[2] = {{(void *)job, sizeof *job}, {(void *)strings, job->length}};
    return wire_send_parts(sandbox->job, parts, 2);
}

int sandbox_end_everyone(struct sandbox *sandbox)
{
    struct report report;
    command(sandbox, COMMAND_END_EVERYONE); /* init may be gone: then there is no answer */
    return await_report(sandbox->control, REPORT_EVERYONE_ENDED, &report, NULL);
}

void sandbox_terminate(struct sandbox *sandbox)
{
    command(sandbox, COMMAND_TERMINATE);
}

int sandbox_has_ended(struct sandbox *sandbox, int *status)
{
    struct report report;
    ssize_t got = recv(sandbox->control, &report, sizeof report, MSG_DONTWAIT);
    if (got == sizeof report && report.type == REPORT_PROGRAM_ENDED)
        *status = report.value;
    else if (got == 0 || (got < 0 && errno == ECONNRESET))
        *status = SIGKILL; /* init is gone, and the program with it */
    else
        return 0;
    return 1;
}

void sandbox_kill(struct sandbox *sandbox)
{
    pid_t pid;
    kill(sandbox->init, SIGKILL);
    /* An init ends only when everyone in its namespace has been reaped. What the zygote forked is the zygote's to
     * reap; of a zygote that is gone, ours. */
    while ((pid = waitpid(-1, NULL, 0)) != sandbox->init && (pid > 0 || errno == EINTR))
        zygote_note_reaped(pid);
    sandbox->init = 0;
}

void sandbox_close(struct sandbox *sandbox)
{
    for (int place = 0; place < PLACE_COUNT; place++)
        close(sandbox->tree.place[place]);
    listening_close(&sandbox->listening);
    close(sandbox->control);
    close(sandbox->job);
    close(sandbox->process);
    /* The pipes are the capture's. */
}

/* Enter the supervisor's own user and mount namespace; the step that failed, or NULL. */
static const char *enter_namespaces(void)
{
    uid_t user = getuid();
    gid_t group = getgid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
        return "unshare(CLONE_NEWUSER)";
    if (map_user(user, group))
        return "map the user of the container";
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return "make mounts private";
    return NULL;
}

void sandbox_enter(void)
{
    const char *failed = enter_namespaces();
    if (failed)
        die("cannot enter a user namespace: %s", failed);
    for (size_t i = 0; i < sizeof hidden_in_sys / sizeof *hidden_in_sys; i++)
        if (hide(hidden_in_sys[i]))
            die("cannot hide %s", hidden_in_sys[i]);
    prctl(PR_SET_DUMPABLE, 0);
}

/* ---- whether it can be had ---------------------------------------------------------------------------- */

static void try(int answer)
{
    static const struct confinement confinement = {.file_size_bytes = 1, .open_files = 16};
    struct report failure = {0};
    struct sandbox sandbox;
    const char *failed = enter_namespaces();
    failure.value = errno;
    if (failed)
        snprintf(failure.step, sizeof failure.step, "%s", failed);
    if (!*failure.step && make(&sandbox, &confinement, &no_interpreter, &failure)) {
        failure = (struct report){0};
        if (!sandbox_is_ready(&sandbox))
            failure = (struct report){.value = EPERM, .step = "confine"};
        command(&sandbox, COMMAND_ATTACH_CODE);
        if (!*failure.step && await_report(sandbox.control, REPORT_ATTACHED, &failure, NULL))
            failure = (struct report){0};
        sandbox_kill(&sandbox); /* else it would be left to process 1, which waits for its own alone */
    }
    if (write(answer, &failure, sizeof failure) < 0)
        _exit(1);
    _exit(0);
}

int sandbox_is_possible(char *why, size_t room)
{
    struct report failure = {.step = "the attempt gave no answer"};
    int answer[2];
    if (pipe2(answer, O_CLOEXEC))
        die("no pipes");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    if (child == 0)
        try(answer[1]);
    close(answer[1]);
    if (read(answer[0], &failure, sizeof failure) < 0)
        failure.value = errno;
    close(answer[0]);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    snprintf(why, room, "%s: %s", failure.step, strerror(failure.value));
    return !*failure.step;
}
