/* The mounts of a sandbox. All functions except hide_sys() run in init. They exit if a mount fails, but they
 * continue without an overlay. */
#ifndef SANDBOX_MOUNTS_H
#define SANDBOX_MOUNTS_H

#include "writable.h"

#include <stdint.h>

/* How many bytes a run may write to its working directory, and in how many files. */
struct work_limits {
    uint64_t bytes, files;
};

/* Mount new writable directories and open them. WRITABLE_WORK is a tmpfs without a path, so a program cannot
 * open it. It receives the changes to the code, which is mounted later. Also mount /dev/mqueue and /dev/pts. */
void setup_writable_dirs(struct writable_dirs *dirs, const struct work_limits *limits);
/* Mount a /proc with the sandbox's processes, in which the files about the host are hidden or read-only. */
void setup_proc(void);
/* Mount the code at /work, writable. `changes` is the open tmpfs that receives the changes. */
void attach_work(int changes);
/* Hide everything in /slot if there is no built program. If there is one, cover /slot with an overlay, which
 * hides the program's file locks from other containers. */
void attach_slot(int changes);
/* In the supervisor's own mount namespace, which sandboxes inherit: hide the files of /sys that identify
 * the machine. Return the path that could not be hidden, with errno, or NULL. */
const char *hide_sys(void);

#endif
