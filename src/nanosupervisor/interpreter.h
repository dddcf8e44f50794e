/* How to start an interpreter that waits for a job: the file /nanosupervisor/interpreter. Only images of
 * interpreted languages have it.
 *
 * The first line of the file is `standby` or `zygote`. Then come variables for the interpreter's
 * environment, NAME=value, and the words of a command, one a line; the first word is a path. The command starts the
 * zygote, once and outside all sandboxes. The zygote forks a process into each sandbox, ahead of its one run. */
#ifndef INTERPRETER_H
#define INTERPRETER_H

#define MAX_WORDS 64

/* The kind of the pre-created process. */
enum kind {
    KIND_EXEC,     /* a process of the supervisor's own code, which executes any program */
    KIND_STANDBY,  /* the zygote has loaded the interpreter's libraries; each process starts the interpreter itself */
    KIND_ZYGOTE,   /* the zygote has started the interpreter, and imported modules */
    KIND_IMPORTER, /* the importer has also imported packages of the code (importer.h) */
};

struct interpreter {
    enum kind kind;
    int word_count;
    char *words[MAX_WORDS + 1];
};

/* Read the file. The kind is KIND_EXEC if the image has no file, or an invalid one. */
void interpreter_read(struct interpreter *interpreter);
/* The whole environment of a waiting interpreter. The run can see it in /proc/self/environ. */
extern char *interpreter_environment[];

#endif
