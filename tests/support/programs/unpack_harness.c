/* Makes trees from packs with the supervisor's code. Each line of the input has the paths of a pack and of an existing
 * directory, separated by a tab. Each line of the output has the errno (0: success), the files and the bytes. */
#define _GNU_SOURCE
#include "unpack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char line[8192];
    while (fgets(line, sizeof line, stdin)) {
        struct ready_report report = {0};
        line[strcspn(line, "\n")] = 0;
        char *directory = strchr(line, '\t');
        *directory++ = 0;
        int to = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (to < 0)
            return 2;
        int error = unpack(line, to, &report) ? errno : 0;
        printf("%d %u %llu\n", error, report.files, (unsigned long long)report.bytes);
        fflush(stdout);
        close(to);
        /* All descriptors must have been closed: the next one has the lowest number again. */
        int next = dup(0);
        if (next != to)
            return 3;
        close(next);
    }
    return 0;
}
