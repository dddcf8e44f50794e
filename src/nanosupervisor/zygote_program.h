/* A run's program in an interpreter that is up already, from its first line to its exit. */
#ifndef ZYGOTE_PROGRAM_H
#define ZYGOTE_PROGRAM_H

/* Import the modules that the end of a run needs; before any module is hidden. 0, or -1 with a Python error. */
int program_keep_modules(void);
/* Collect the zygote's garbage and put everything that is left out of the collector's reach; 0, or -1 with a
 * Python error. May be called again after more was imported. */
int program_freeze(void);
/* In a child: note what belongs to the zygote, before anything of the run is there. 0, or -1 with a Python error. */
int program_prepare(void);
/* Run this file (an absolute path) as `python3 file` would, and exit as it would. */
__attribute__((noreturn)) void program_run(const char *path);

#endif
