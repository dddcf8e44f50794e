/* See interpreter.h. */
#define _GNU_SOURCE
#include "interpreter.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { OUR_VARIABLES = 3, MAX_VARIABLES = 8 };

char *interpreter_environment[MAX_VARIABLES + 1] = {
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "HOME=/tmp",
    "LANG=C.UTF-8",
};

static enum kind kind_named(const char *name)
{
    return !strcmp(name, "standby") ? KIND_STANDBY : !strcmp(name, "zygote") ? KIND_ZYGOTE : KIND_EXEC;
}

void interpreter_read(struct interpreter *interpreter)
{
    static char text[4096];
    *interpreter = (struct interpreter){.kind = KIND_EXEC};
    int file = open("/nanosupervisor/interpreter", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    char *at = length > 0 ? text : NULL, *kind = at ? strsep(&at, "\n") : "";
    for (int count = OUR_VARIABLES; at && *at && *at != '/' && count < MAX_VARIABLES; count++)
        interpreter_environment[count] = strsep(&at, "\n");
    while (at && *at && interpreter->word_count < MAX_WORDS)
        interpreter->words[interpreter->word_count++] = strsep(&at, "\n");
    if (interpreter->word_count)
        interpreter->kind = kind_named(kind);
}
