/* See waiting.h. */
#define _GNU_SOURCE
#include "waiting.h"
#include "zygote.h"

#include <errno.h>
#include <string.h>

/* An interpreter that does not start is tried once, then KIND_EXEC. More failures in a row are not expected, because
 * sandbox_is_possible() has succeeded. */
enum { MAX_FAILURES = 3 };

struct entry {
    struct sandbox sandbox;
    int handed_over; /* the worker has its listening sockets */
};

static struct {
    struct work_limits work;
    int has_code;
    struct purpose purpose; /* of all entries */
    struct entry entries[MAX_WAITING];
    size_t count;
    int failures;     /* since the last sandbox that became complete */
    enum names names; /* of this code, for processes of this zygote */
} waiting = {.names = NAMES_UNKNOWN};

void waiting_set_up(const struct work_limits *work)
{
    waiting.work = *work;
}

const struct work_limits *waiting_limits(void)
{
    return &waiting.work;
}

/* ---- creating and discarding -------------------------------------------------------------------------- */

static int is_complete(const struct sandbox *sandbox)
{
    return sandbox->stage == (waiting.has_code ? STAGE_ATTACHED : STAGE_WAITING);
}

/* If the importer cannot fork any more, the zygote does. */
static enum kind choose_kind(void)
{
    if (waiting.purpose.kind == KIND_IMPORTER && importer_is_running())
        return KIND_IMPORTER;
    if (waiting.purpose.kind == KIND_EXEC || waiting.failures || !zygote_is_running())
        return KIND_EXEC;
    return waiting.purpose.kind == KIND_IMPORTER ? KIND_ZYGOTE : waiting.purpose.kind;
}

/* Limit the time in which the importer's sandboxes come further. */
static void limit_creation(void)
{
    int is_creating = 0;
    for (size_t i = 0; i < waiting.count; i++) {
        const struct sandbox *sandbox = &waiting.entries[i].sandbox;
        is_creating |= sandbox->parent == PARENT_IMPORTER && sandbox->stage != STAGE_FAILED && !is_complete(sandbox);
    }
    importer_limit_creation(is_creating);
}

static int has_sandbox_of_importer(void)
{
    for (size_t i = 0; i < waiting.count; i++)
        if (waiting.entries[i].sandbox.parent == PARENT_IMPORTER)
            return 1;
    return 0;
}

static void begin_one(void)
{
    struct entry *entry = &waiting.entries[waiting.count++];
    *entry = (struct entry){0};
    sandbox_begin(&entry->sandbox, &waiting.work, &waiting.purpose.confinement, choose_kind());
    if (entry->sandbox.stage != STAGE_FAILED)
        return;
    if (entry->sandbox.parent == PARENT_IMPORTER)
        importer_note_failure();
    else
        waiting.failures++;
}

static void remove_entry(size_t index)
{
    waiting.count--;
    memmove(&waiting.entries[index], &waiting.entries[index + 1], (waiting.count - index) * sizeof *waiting.entries);
}

static void discard_failed(void)
{
    for (size_t i = waiting.count; i-- > 0;) {
        struct sandbox *sandbox = &waiting.entries[i].sandbox;
        if (sandbox->stage != STAGE_FAILED)
            continue;
        if (waiting.failures >= MAX_FAILURES)
            sandbox_die(sandbox);
        sandbox_discard(sandbox);
        remove_entry(i);
    }
}

void waiting_fill(size_t count, const struct purpose *purpose)
{
    waiting.purpose = *purpose;
    discard_failed();
    if (!has_sandbox_of_importer())
        importer_remove();
    while (waiting.count < count)
        begin_one();
    limit_creation();
}

/* When the code or the zygote changes, all sandboxes are discarded. So forget here what one of them has found. */
void waiting_discard(void)
{
    waiting.names = NAMES_UNKNOWN;
    for (size_t i = 0; i < waiting.count; i++)
        if (waiting.entries[i].sandbox.init)
            sandbox_begin_kill(&waiting.entries[i].sandbox); /* all at once, because each takes the kernel long */
    while (waiting.count) {
        sandbox_discard(&waiting.entries[0].sandbox);
        remove_entry(0);
    }
    limit_creation();
}

void waiting_attach_code(void)
{
    waiting.has_code = 1;
    waiting_advance();
}

/* ---- from stage to stage ------------------------------------------------------------------------------ */

size_t waiting_watch(struct pollfd events[WAITING_EVENTS])
{
    size_t count = 0;
    for (size_t i = 0; i < waiting.count; i++)
        count += sandbox_watch(&waiting.entries[i].sandbox, events + count);
    if (waiting.count && zygote_is_running())
        events[count++] = (struct pollfd){zygote_fd(), POLLIN, 0};
    return count + importer_watch(events + count);
}

static void advance(struct sandbox *sandbox)
{
    enum stage before = sandbox->stage;
    sandbox_advance(sandbox);
    if (sandbox->stage == STAGE_WAITING && waiting.has_code)
        sandbox_attach_code(sandbox, waiting.names);
    if (sandbox->names != NAMES_UNKNOWN && sandbox->parent == PARENT_ZYGOTE)
        waiting.names = sandbox->names;
    if (sandbox->stage == before)
        return;
    if (sandbox->parent == PARENT_IMPORTER)
        limit_creation();
    if (is_complete(sandbox))
        waiting.failures = 0;
    /* A process that has waited before it was killed says nothing about the next one. After a failed fork of the
     * importer, the zygote forks. */
    if (sandbox->stage == STAGE_FAILED && sandbox->parent == PARENT_IMPORTER)
        importer_note_failure();
    else if (sandbox->stage == STAGE_FAILED && before != STAGE_WAITING && before < STAGE_ATTACHING)
        waiting.failures++;
}

void waiting_advance(void)
{
    do {
        zygote_receive();
        importer_receive();
        for (size_t i = 0; i < waiting.count; i++)
            advance(&waiting.entries[i].sandbox);
    } while (importer_is_late());
}

int waiting_has_failed(void)
{
    for (size_t i = 0; i < waiting.count; i++)
        if (waiting.entries[i].sandbox.stage == STAGE_FAILED)
            return 1;
    return 0;
}

int waiting_is_ready(void)
{
    return waiting.count && is_complete(&waiting.entries[0].sandbox);
}

int waiting_was_lost(void)
{
    return waiting.count && waiting.entries[0].handed_over && waiting.entries[0].sandbox.stage == STAGE_FAILED;
}

static int all_complete(void)
{
    for (size_t i = 0; i < waiting.count; i++)
        if (!is_complete(&waiting.entries[i].sandbox))
            return 0;
    return 1;
}

void waiting_complete(void)
{
    struct pollfd events[WAITING_EVENTS];
    for (waiting_advance(); !all_complete(); waiting_advance()) {
        if (waiting_has_failed())
            waiting_fill(waiting.count, &waiting.purpose);
        else if (poll(events, waiting_watch(events), -1) < 0 && errno != EINTR)
            die("poll");
    }
}

size_t waiting_count(void)
{
    return waiting.count;
}

struct purpose waiting_purpose(void)
{
    return waiting.purpose;
}

int waiting_is_for(const struct purpose *purpose)
{
    return waiting.purpose.kind == purpose->kind &&
           !memcmp(&waiting.purpose.confinement, &purpose->confinement, sizeof purpose->confinement);
}

void waiting_hand_over(void)
{
    struct entry *first = &waiting.entries[0];
    if (first->handed_over)
        return;
    listening_hand_over(&first->sandbox.listening);
    first->handed_over = 1;
}

struct sandbox waiting_take(void)
{
    struct sandbox first = waiting.entries[0].sandbox;
    remove_entry(0);
    return first;
}
