/* What waits for a job in this image: the file /nanosupervisor/interpreter, if there is one.
 *
 * Its first line is `spare` or `zygote`; then come variables for its environment, NAME=value, and the words of
 * a command, whose first is a path. A spare is started in the sandbox
 * ahead of its one run. A zygote is started once, outside, and forks a process into each sandbox. */
#ifndef INTERPRETER_H
#define INTERPRETER_H

#define MAX_WORDS 64

/* The descriptors of a process that waits for its job: the job's socket, and the program's standard streams. */
enum { PARKED_JOB, PARKED_IN, PARKED_OUT, PARKED_ERR, PARKED_END_COUNT };

enum kind { KIND_EXEC, KIND_SPARE, KIND_ZYGOTE };

struct interpreter {
    enum kind kind;
    int word_count;
    char *words[MAX_WORDS + 1];
};

/* An image without the file, or with another content, has none: KIND_EXEC. */
extern const struct interpreter no_interpreter;
void interpreter_read(struct interpreter *interpreter);
/* All that a waiting interpreter has in its environment: it may be seen by the run in /proc/self/environ. */
extern char *interpreter_environment[];

#endif
