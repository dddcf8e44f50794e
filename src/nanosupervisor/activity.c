/* See activity.h. */
#define _GNU_SOURCE
#include "activity.h"
#include "listening.h"
#include "wire.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES 5
#define SAMPLE_NS 2000000L
#define LISTENING_STATE 10u /* TCP_LISTEN, include/net/tcp_states.h */

static void read_beginning(const char *path, char *text, size_t room)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file >= 0 ? read(file, text, room - 1) : 0;
    if (file >= 0)
        close(file);
    text[length > 0 ? length : 0] = 0;
}

void activity_read_network_file(pid_t process, const char *name, char *text, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/net/%s", process, name);
    read_beginning(path, text, room);
}

/* Whether the program has a TCP socket that listens. The kernel lists such sockets first, so the beginning of the
 * list is enough. The sockets of the worker (listening.h) do not count: they have IPv4 addresses. */
static int is_listening(pid_t process)
{
    char text[8192];
    unsigned address, port, state;
    activity_read_network_file(process, "tcp6", text, sizeof text);
    for (const char *line = strchr(text, '\n'); line; line = strchr(line + 1, '\n'))
        if (sscanf(line, " %*u: %*32[0-9A-F]:%4x %*32[0-9A-F]:%*4x %2x", &port, &state) == 2 && state == LISTENING_STATE)
            return 1;
    activity_read_network_file(process, "tcp", text, sizeof text);
    for (const char *line = strchr(text, '\n'); line; line = strchr(line + 1, '\n'))
        if (sscanf(line, " %*u: %8x:%4x %*8x:%*4x %2x", &address, &port, &state) == 3 && state == LISTENING_STATE &&
            !listening_is_configured(address, (uint16_t)port))
            return 1;
    return 0;
}

/* Whether a thread runs, or waits for a CPU. Its name is in parentheses, and may contain any character. */
static int is_runnable(const char *process, const char *thread)
{
    char path[128], text[512];
    snprintf(path, sizeof path, "/proc/%.20s/task/%.20s/stat", process, thread);
    read_beginning(path, text, sizeof text);
    const char *name_end = strrchr(text, ')');
    return name_end && !strncmp(name_end, ") R", 3);
}

static int has_runnable_thread(const char *process)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%.20s/task", process);
    DIR *threads = opendir(path);
    int found = 0;
    for (const struct dirent *entry; threads && !found && (entry = readdir(threads));)
        found = entry->d_name[0] != '.' && is_runnable(process, entry->d_name);
    if (threads)
        closedir(threads);
    return found;
}

/* Whether a process of the container, besides this one, runs or waits for a CPU. Between two runs all of them wait
 * for an event. */
static int is_any_runnable(void)
{
    DIR *processes = opendir("/proc");
    int found = 0;
    for (const struct dirent *entry; processes && !found && (entry = readdir(processes));)
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && atoi(entry->d_name) != getpid())
            found = has_runnable_thread(entry->d_name);
    if (processes)
        closedir(processes);
    return found;
}

/* CPU times would not tell a program that computes from a program that waits: on a busy machine both may get little. */
uint32_t activity_flags(pid_t network_process)
{
    const struct timespec pause = {0, SAMPLE_NS};
    int runnable = 0;
    for (int i = 0; i < SAMPLES; i++) {
        if (i)
            nanosleep(&pause, NULL);
        runnable += is_any_runnable();
    }
    return (is_listening(network_process) ? EXIT_LISTENING : 0u) | (runnable == SAMPLES ? EXIT_COMPUTING : 0u) |
           (runnable == 0 ? EXIT_WAITING : 0u);
}
