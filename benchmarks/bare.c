/* The helper of the baseline: runs programs one at a time inside a container, and measures their time.
 *
 * The time of a run begins after its request was read, and ends when the end of the program is known. So it
 * includes no time of Docker, of the socket or of the client. The helper is static and small, so its fork is
 * cheap.
 *
 *   bare SOCKET    connects to the Unix stream socket, and serves requests until the socket is closed
 *
 * All numbers are in the byte order of the machine.
 *   request  u32 length, u32 arguments, u32 variables; then `length` bytes of NUL-terminated strings: the
 *            working directory, the file for standard input, the arguments, the variables (NAME=value)
 *   reply    u64 wall time (ns), u64 CPU time (us), i32 wait status, u32 length; then the program's output */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_REQUEST (1u << 20)
#define MAX_STRINGS 4096u
#define MAX_OUTPUT (64u << 10)

struct request {
    uint32_t length, arguments, variables;
};

struct __attribute__((packed)) reply {
    uint64_t wall_ns, cpu_us;
    int32_t status;
    uint32_t length;
};

static char strings[MAX_REQUEST];
static char output[MAX_OUTPUT];

static uint64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t microseconds(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_usec;
}

static void receive(int from, void *into, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t count = read(from, (char *)into + got, size - got);
        if (count <= 0)
            exit(0);
        got += (size_t)count;
    }
}

static void send_all(int to, const void *data, size_t size)
{
    for (size_t sent = 0; sent < size;) {
        ssize_t count = write(to, (const char *)data + sent, size - sent);
        if (count <= 0)
            exit(0);
        sent += (size_t)count;
    }
}

static void become(const char *folder, const char *input, char **arguments, char **variables, int out)
{
    int in = open(input, O_RDONLY);
    if (in < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 || chdir(folder) != 0)
        _exit(126);
    close(in);
    execve(arguments[0], arguments, variables);
    _exit(127);
}

static uint32_t read_to_end(int from)
{
    static char rest[4096];
    uint32_t kept = 0;
    for (;;) {
        size_t room = MAX_OUTPUT - kept;
        ssize_t count = read(from, room ? output + kept : rest, room ? room : sizeof rest);
        if (count <= 0)
            return kept;
        if (room)
            kept += (uint32_t)count;
    }
}

static struct reply run(const char *folder, const char *input, char **arguments, char **variables)
{
    struct reply reply = {0};
    struct rusage usage;
    int ends[2], status;
    uint64_t start = now_ns();
    if (pipe2(ends, O_CLOEXEC) != 0)
        exit(1);
    pid_t program = fork();
    if (program < 0)
        exit(1);
    if (program == 0)
        become(folder, input, arguments, variables, ends[1]);
    close(ends[1]);
    reply.length = read_to_end(ends[0]);
    if (wait4(program, &status, 0, &usage) != program)
        exit(1);
    reply.wall_ns = now_ns() - start;
    close(ends[0]);
    reply.cpu_us = microseconds(usage.ru_utime) + microseconds(usage.ru_stime);
    reply.status = status;
    while (waitpid(-1, NULL, WNOHANG) > 0) /* process 1 inherits orphans, for example of compilers */
        ;
    return reply;
}

int main(int count, char **names)
{
    static char *words[MAX_STRINGS];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (count != 2 || strlen(names[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, names[1]);
    if (agent < 0 || connect(agent, (struct sockaddr *)&address, sizeof address) != 0)
        return 1;
    for (;;) {
        struct request request;
        receive(agent, &request, sizeof request);
        uint64_t wanted = 2u + (uint64_t)request.arguments + request.variables;
        if (request.length >= MAX_REQUEST || request.arguments == 0 || wanted + 2 > MAX_STRINGS)
            return 2;
        receive(agent, strings, request.length);
        strings[request.length] = '\0';
        /* folder, input, arguments..., NULL, variables..., NULL */
        char *next = strings, **word = words;
        for (uint32_t i = 0; i < wanted; i++) {
            *word++ = next;
            if (next < strings + request.length)
                next += strlen(next) + 1;
            if (i == 1 + request.arguments)
                *word++ = NULL;
        }
        *word = NULL;
        char **variables = words + 2 + request.arguments + 1;
        struct reply reply = run(words[0], words[1], words + 2, variables);
        send_all(agent, &reply, sizeof reply);
        send_all(agent, output, reply.length);
    }
}
