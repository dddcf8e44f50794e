/* How to start an interpreter that waits for a job: the file /nanosupervisor/interpreter. Only images of
 * interpreted languages have it.
 *
 * The first line of the file is `standby` or `zygote`. Then come variables for the interpreter's
 * environment, NAME=value, and the words of a command, one a line; the first word is a path. A standby process is
 * started in a sandbox, ahead of its one run. A zygote is started once, outside all sandboxes, and forks a
 * process into each sandbox. */
#ifndef INTERPRETER_H
#define INTERPRETER_H

#define MAX_WORDS 64

/* The kind of the pre-created process. KIND_EXEC is a process of the supervisor's own code that executes
 * any program. */
enum kind { KIND_EXEC, KIND_STANDBY, KIND_ZYGOTE };

struct interpreter {
    enum kind kind;
    int word_count;
    char *words[MAX_WORDS + 1];
};

/* The value for an image without the file, or with an invalid file: KIND_EXEC. */
extern const struct interpreter no_interpreter;
void interpreter_read(struct interpreter *interpreter);
/* The whole environment of a waiting interpreter. The run can see it in /proc/self/environ. */
extern char *interpreter_environment[];

#endif
