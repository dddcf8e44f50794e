/* See importer.h. */
#define _GNU_SOURCE
#include "importer.h"
#include "control.h"
#include "descriptors.h"
#include "importer_namespaces.h"
#include "namespaces.h"
#include "run.h"
#include "sandbox.h"
#include "zygote.h"
#include "zygote_protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define START_TIMEOUT_MS 10000
_Static_assert(IMPORTED_ALL == IMPORTS_REUSED, "zygote_protocol.h and wire.h differ");
#define IMPORT_TIMEOUT_MS 30000
#define STEP_TIMEOUT_MS 5000 /* one step in the creation of a sandbox takes milliseconds */
#define END_TIMEOUT_MS 8000 /* less than the worker waits, and more than a busy machine needs */
/* The run's program, those of the sandboxes that wait, and one that is discarded. */
#define MAX_CHILDREN 8
#define MAX_MESSAGES 64 /* that are received at once, so that an importer cannot keep the supervisor busy */

struct child {
    pid_t pid; /* in the importer's sandbox; 0: free */
    int has_ended;
    struct importer_exit end;
};

static struct {
    enum imports_state state;
    int exists; /* the sandbox */
    struct sandbox sandbox;
    struct importer_namespaces namespaces;
    int init_has_ended;
    int timer;           /* of importer_limit_creation() */
    unsigned unanswered; /* requests to fork */
    struct child children[MAX_CHILDREN];
} importer = {.timer = -1};

static int64_t now_ms(void)
{
    return (int64_t)(run_clock_us() / 1000);
}

enum imports_state importer_state(void)
{
    return importer.state;
}

int importer_is_running(void)
{
    return importer.state == IMPORTS_REUSED;
}

int importer_filter_listener(void)
{
    return importer.sandbox.filter_listener;
}

/* The importer must not be used any more. Its sandbox remains, because the current run is in it. */
static void give_up(enum imports_state why)
{
    if (importer.state == IMPORTS_REUSED)
        importer.state = why;
}

/* ---- the start ---------------------------------------------------------------------------------------- */

/* Wait until the sandbox is in this stage; 0 if it fails, or not in time. */
static int reach(enum stage stage, int64_t deadline)
{
    struct sandbox *sandbox = &importer.sandbox;
    struct pollfd events[SANDBOX_EVENTS + 1];
    for (sandbox_advance(sandbox); sandbox->stage < stage; sandbox_advance(sandbox)) {
        size_t count = sandbox_watch(sandbox, events);
        if (zygote_is_running())
            events[count++] = (struct pollfd){zygote_fd(), POLLIN, 0};
        int64_t left = deadline - now_ms();
        if (left <= 0 || (poll(events, count, (int)left) < 0 && errno != EINTR))
            return 0;
        zygote_receive();
    }
    return sandbox->stage == stage;
}

/* Create the sandbox, and mount the code into it. */
static int make_sandbox(const struct work_limits *work, const struct confinement *confinement)
{
    struct confinement own = *confinement;
    int64_t deadline = now_ms() + START_TIMEOUT_MS;
    own.importer = 1;
    sandbox_begin(&importer.sandbox, work, &own, KIND_ZYGOTE);
    importer.exists = 1;
    importer.init_has_ended = 0;
    if (!reach(STAGE_WAITING, deadline) || importer_namespaces_open(&importer.namespaces, importer.sandbox.init))
        return 0;
    sandbox_attach_code(&importer.sandbox, NAMES_FREE);
    return reach(STAGE_ATTACHED, deadline);
}

/* The free space of the sandbox's directories, which changes when a file is written. */
struct space {
    struct statfs of[WRITABLE_COUNT];
};

static void measure(struct space *space)
{
    memset(space, 0, sizeof *space);
    for (int i = 0; i < WRITABLE_COUNT; i++)
        fstatfs(importer.sandbox.dirs.directory[i], &space->of[i]);
}

static int has_written(const struct space *before)
{
    struct space now;
    measure(&now);
    for (int i = 0; i < WRITABLE_COUNT; i++)
        if (now.of[i].f_bfree != before->of[i].f_bfree || now.of[i].f_ffree != before->of[i].f_ffree)
            return 1;
    return 0;
}

static int has_printed(void)
{
    int out = 0, err = 0;
    return ioctl(importer.sandbox.out, FIONREAD, &out) || ioctl(importer.sandbox.err, FIONREAD, &err) || out || err;
}

/* Receive the answer to the request to import. */
static enum imports_state await_imports(void)
{
    struct pollfd event = {importer.sandbox.job, POLLIN, 0};
    int64_t left, deadline = now_ms() + IMPORT_TIMEOUT_MS;
    struct imported imported;
    while ((left = deadline - now_ms()) > 0 && poll(&event, 1, (int)left) < 0 && errno == EINTR)
        ;
    if (!event.revents)
        return IMPORTS_SLOW;
    ssize_t got = recv(importer.sandbox.job, &imported, sizeof imported, MSG_DONTWAIT);
    if (got != sizeof imported || imported.type != IMPORTER_IMPORTED || imported.state == IMPORTS_OFF ||
        imported.state >= IMPORTS_STATES)
        return IMPORTS_ENDED;
    return (enum imports_state)imported.state;
}

static enum imports_state import(void)
{
    const char request = IMPORTER_IMPORT;
    struct space before;
    measure(&before);
    if (send(importer.sandbox.job, &request, 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return IMPORTS_ENDED;
    enum imports_state state = await_imports();
    if (state == IMPORTS_REUSED && has_printed())
        return IMPORTS_PRINTED;
    if (state == IMPORTS_REUSED && has_written(&before))
        return IMPORTS_FILES;
    return state;
}

/* From now on each netlink call belongs to a run, and the init of its sandbox serves it. */
static int stop_netlink(void)
{
    const struct command_message stop = {.command = COMMAND_STOP_NETLINK};
    struct pollfd event = {importer.sandbox.control, POLLIN, 0};
    struct report report;
    send(importer.sandbox.control, &stop, sizeof stop, MSG_NOSIGNAL);
    return poll(&event, 1, START_TIMEOUT_MS) > 0 && recv(event.fd, &report, sizeof report, 0) == sizeof report &&
           report.type == REPORT_NETLINK_STOPPED;
}

enum imports_state importer_start(const struct work_limits *work, const struct confinement *confinement)
{
    enum imports_state state = IMPORTS_UNAVAILABLE;
    importer_stop();
    importer.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (importer.timer >= 0 && make_sandbox(work, confinement))
        state = import();
    if (state == IMPORTS_REUSED && !stop_netlink())
        state = IMPORTS_ENDED;
    if (state != IMPORTS_REUSED)
        importer_stop();
    importer.state = state;
    return state;
}

void importer_stop(void)
{
    if (importer.exists) {
        sandbox_discard(&importer.sandbox);
        importer_namespaces_close(&importer.namespaces);
    }
    if (importer.timer >= 0)
        close(importer.timer);
    importer.timer = -1;
    importer.exists = 0;
    importer.unanswered = 0;
    importer.state = IMPORTS_OFF;
    memset(importer.children, 0, sizeof importer.children);
}

void importer_remove(void)
{
    enum imports_state why = importer.state;
    if (!importer.exists || importer_is_running())
        return;
    importer_stop();
    importer.state = why;
}

/* ---- messages ----------------------------------------------------------------------------------------- */

size_t importer_watch(struct pollfd events[IMPORTER_EVENTS])
{
    size_t count = 0;
    if (!importer.exists)
        return 0;
    if (!importer.init_has_ended)
        events[count++] = (struct pollfd){importer.sandbox.control, POLLIN, 0};
    if (importer_is_running()) {
        events[count++] = (struct pollfd){importer.sandbox.job, POLLIN, 0};
        events[count++] = (struct pollfd){importer.timer, POLLIN, 0};
    }
    return count;
}

/* Return the entry of a child, or NULL. Pid 0: return a free entry. */
static struct child *child_of(pid_t pid)
{
    for (int i = 0; i < MAX_CHILDREN; i++)
        if (importer.children[i].pid == pid)
            return &importer.children[i];
    return NULL;
}

static void note_report(const struct report *report)
{
    struct child *child = report->type == REPORT_CHILD_ENDED && report->pid > 0 ? child_of(report->pid) : NULL;
    if (!child)
        return;
    child->has_ended = 1;
    child->end = (struct importer_exit){
        .status = report->value, .user_us = report->user_us, .system_us = report->system_us};
}

/* The kernel has killed everything in the importer's sandbox. */
static void note_end_of_init(void)
{
    importer.init_has_ended = 1;
    give_up(IMPORTS_ENDED);
    for (int i = 0; i < MAX_CHILDREN; i++)
        if (importer.children[i].pid && !importer.children[i].has_ended) {
            importer.children[i].has_ended = 1;
            importer.children[i].end = (struct importer_exit){.status = SIGKILL, .is_orphan = 1};
        }
}

static void receive_reports(void)
{
    struct report report;
    ssize_t got = -1;
    for (int i = 0; i < MAX_MESSAGES && !importer.init_has_ended; i++) {
        got = recv(importer.sandbox.control, &report, sizeof report, MSG_DONTWAIT);
        if (got == sizeof report)
            note_report(&report);
        else if (got >= 0 || errno != EAGAIN)
            note_end_of_init();
        else
            break;
    }
}

/* The only expected message is the answer to a request. That the fork has succeeded, the process itself must show. */
static void receive_answers(void)
{
    struct forked forked;
    for (int i = 0; i < MAX_MESSAGES && importer_is_running(); i++) {
        ssize_t got = recv(importer.sandbox.job, &forked, sizeof forked, MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN)
            break;
        if (got != sizeof forked || forked.type != ZYGOTE_FORKED || !importer.unanswered--)
            give_up(IMPORTS_ENDED);
        else if (forked.pid < 0)
            give_up(forked.pid == -EBUSY ? IMPORTS_THREADS : IMPORTS_ENDED);
    }
}

void importer_receive(void)
{
    if (!importer.exists)
        return;
    receive_reports();
    receive_answers();
}

int importer_is_late(void)
{
    uint64_t expirations;
    if (!importer_is_running() || read(importer.timer, &expirations, sizeof expirations) < 0)
        return 0;
    give_up(IMPORTS_SLOW);
    return 1;
}

/* ---- processes for runs ------------------------------------------------------------------------------- */

static void set_timer(int milliseconds)
{
    const struct itimerspec time = {.it_value = {milliseconds / 1000, milliseconds % 1000 * 1000000L}};
    timerfd_settime(importer.timer, 0, &time, NULL);
}

_Static_assert(2 + WRITABLE_COUNT <= MOST_KEPT, "an init gets too many descriptors");

static void run_init(void *plan)
{
    init_main(*(struct sandbox_plan *)plan);
}

int importer_begin_init(struct sandbox_plan *plan, struct init_creation *creation)
{
    struct init_work work = {.run = run_init, .argument = plan};
    plan->run_namespace = importer.namespaces.runs;
    work.kept[work.kept_count++] = plan->control;
    work.kept[work.kept_count++] = plan->run_namespace;
    for (int i = 0; i < WRITABLE_COUNT; i++)
        work.kept[work.kept_count++] = container_dirs.directory[i];
    return importer_namespaces_begin_clone(&importer.namespaces, creation, &work);
}

void importer_limit_creation(int is_creating)
{
    if (importer_is_running())
        set_timer(is_creating ? STEP_TIMEOUT_MS : 0);
}

void importer_request_fork(int job, const int process[PROCESS_DESCRIPTORS], int anchor,
                           const struct confinement *confinement)
{
    const struct fork_request request = {ZYGOTE_FORK, SANDBOX_NAMESPACES, *confinement};
    int descriptors[FORK_DESCRIPTORS], yes = 1;
    memcpy(descriptors, process, PROCESS_DESCRIPTORS * sizeof *process);
    descriptors[FORK_INIT] = anchor;
    if (!importer_is_running())
        return;
    importer.unanswered++;
    /* Not blocking, because the importer may not receive. */
    if (setsockopt(job, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) ||
        descriptors_send(importer.sandbox.job, &request, sizeof request, descriptors, FORK_DESCRIPTORS, MSG_DONTWAIT))
        give_up(IMPORTS_ENDED);
}

void importer_note_failure(void)
{
    give_up(IMPORTS_ENDED);
}

/* Return what follows a name in the text of /proc/PID/status; an empty text if the name does not occur. */
static const char *value_of(const char *text, const char *name)
{
    const char *at = strstr(text, name);
    return at ? at + strlen(name) : "";
}

static int has_no_capability(const char *status)
{
    static const char *const sets[] = {"\nCapInh:", "\nCapPrm:", "\nCapEff:", "\nCapBnd:", "\nCapAmb:"};
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        const char *value = value_of(status, sets[i]);
        if (!*value || strtoull(value, NULL, 16))
            return 0;
    }
    return 1;
}

static int read_status(pid_t process, char *text, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", process);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file >= 0 ? read(file, text, room - 1) : -1;
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
    return length > 0;
}

static int is_in_namespace(pid_t process, uint64_t pid_namespace)
{
    char path[64];
    struct stat info;
    snprintf(path, sizeof path, "/proc/%d/ns/pid", process);
    return !stat(path, &info) && info.st_ino == pid_namespace;
}

/* Return the number that a process of a run has in the importer's sandbox; 0 if it is not such a process, or not confined
 * as it should be. */
static pid_t examine(pid_t process, uint64_t pid_namespace)
{
    char status[4096];
    int outside, inside, own;
    if (!read_status(process, status, sizeof status) || !is_in_namespace(process, pid_namespace) ||
        sscanf(value_of(status, "\nNSpid:"), "%d %d %d", &outside, &inside, &own) != 3)
        return 0;
    int is_confined = has_no_capability(status) && atoi(value_of(status, "\nNoNewPrivs:")) == 1 &&
                      atoi(value_of(status, "\nSeccomp:")) == 2;
    int is_adopted = atoi(value_of(status, "\nPPid:")) == importer.sandbox.init;
    return is_confined && is_adopted && outside == process ? inside : 0;
}

/* Receive one byte and the number of the process that has sent it, which the kernel adds. */
static ssize_t receive_with_sender(int job, char *byte, pid_t *sender)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(struct ucred))]; /* no room for descriptors: the kernel drops them */
    } control;
    struct iovec part = {byte, 1};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct ucred credentials;
    ssize_t got = recvmsg(job, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    *sender = 0;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS) {
        memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
        *sender = credentials.pid;
    }
    return got;
}

static void watch_child(struct child *entry, pid_t pid)
{
    const struct command_message watch = {COMMAND_WATCH, pid};
    *entry = (struct child){.pid = pid};
    send(importer.sandbox.control, &watch, sizeof watch, MSG_NOSIGNAL);
}

enum admission importer_admit(int job, uint64_t pid_namespace, pid_t *child)
{
    char byte;
    int no = 0;
    pid_t sender;
    ssize_t got = receive_with_sender(job, &byte, &sender);
    if (got < 0 && errno == EAGAIN)
        return ADMISSION_PENDING;
    pid_t pid = got == 1 && byte == JOB_READY && sender > 0 ? examine(sender, pid_namespace) : 0;
    struct child *entry = pid && !child_of(pid) ? child_of(0) : NULL;
    if (!entry) {
        receive_answers(); /* the importer may have said why it has not forked */
        give_up(IMPORTS_ENDED);
        return ADMISSION_REFUSED;
    }
    setsockopt(job, SOL_SOCKET, SO_PASSCRED, &no, sizeof no);
    watch_child(entry, pid);
    *child = pid;
    return ADMISSION_GRANTED;
}

int importer_take_exit(pid_t pid, struct importer_exit *end)
{
    struct child *child = pid > 0 ? child_of(pid) : NULL;
    if (!child || !child->has_ended)
        return 0;
    *end = child->end;
    child->pid = 0;
    return 1;
}

void importer_await_exit(pid_t pid, struct importer_exit *end)
{
    int64_t left, deadline = now_ms() + END_TIMEOUT_MS;
    struct pollfd event = {importer.sandbox.control, POLLIN, 0};
    for (receive_reports(); !importer_take_exit(pid, end); receive_reports())
        if ((left = deadline - now_ms()) <= 0 || (poll(&event, 1, (int)left) < 0 && errno != EINTR)) {
            *end = (struct importer_exit){.status = SIGKILL};
            importer_forget(pid);
            return;
        }
}

void importer_forget(pid_t pid)
{
    struct child *child = pid > 0 ? child_of(pid) : NULL;
    if (child)
        child->pid = 0;
}

void importer_await_end(int init_pidfd)
{
    struct pollfd event = {init_pidfd, POLLIN, 0};
    while (poll(&event, 1, END_TIMEOUT_MS) < 0 && errno == EINTR)
        ;
    if (event.revents || !importer.exists)
        return;
    sandbox_begin_kill(&importer.sandbox);
    give_up(IMPORTS_ENDED);
}
