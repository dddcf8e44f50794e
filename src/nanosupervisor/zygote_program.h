/* Runs a run's program, from its first line to its exit, in an interpreter that has already started. */
#ifndef ZYGOTE_PROGRAM_H
#define ZYGOTE_PROGRAM_H

/* Import the modules that the end of a run needs. Call this before any module is hidden. 0, or -1 with a
 * Python error. */
int program_import_modules(void);
/* Collect the zygote's garbage, and exclude all remaining objects from later collections; 0, or -1 with a
 * Python error. May be called again after more imports. */
int program_freeze(void);
/* In a forked process: count the exit functions and libraries of the zygote, before the run adds any. Return 0,
 * or -1 with a Python error. */
int program_note_start(void);
/* Run the file at an absolute path as `python3 file` would, and exit as it would. */
__attribute__((noreturn)) void program_run(const char *path);

#endif
