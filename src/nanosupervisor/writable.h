/* The writable directories. A run cannot write to files elsewhere. */
#ifndef WRITABLE_H
#define WRITABLE_H

#include <stdint.h>
#include <time.h>

#define WORK_DIR "/work"
#define INPUT_DIR "/input"
#define OUTPUT_DIR "/output"

enum writable { WRITABLE_WORK, WRITABLE_TMP, WRITABLE_OUTPUT, WRITABLE_INPUT, WRITABLE_SHM, WRITABLE_COUNT };

/* The path of each, in the container and in a sandbox. */
extern const char *const writable_path[WRITABLE_COUNT];

/* An open descriptor of each, in the container or in a sandbox. A program cannot replace a directory that
 * is open. */
struct writable_dirs {
    int directory[WRITABLE_COUNT];
};

/* The directories of the container. */
extern struct writable_dirs container_dirs;

/* Open the directories of the container, and note their free space. Call this once, while they are empty. */
void writable_open_container(void);
/* Whether a directory has no free block or no free inode. */
int writable_is_full(const struct writable_dirs *dirs);
/* Return the bytes that the files in all directories take. */
uint64_t writable_used_bytes(const struct writable_dirs *dirs);
/* Whether a file has at least `bytes` bytes and has changed at `since` or later (CLOCK_REALTIME_COARSE). The file of
 * the payload, which has `payload_bytes`, does not count. */
int writable_has_file_of(const struct writable_dirs *dirs, uint64_t bytes, uint64_t payload_bytes,
                         const struct timespec *since);
/* Remove everything in one of the container's directories. Return 0 if something could not be removed. */
int writable_wipe_one(enum writable which);
/* Remove everything in all of the container's directories. Return 0 if something could not be removed. */
int writable_wipe(void);
/* Make the kernel close descriptors in flight: a program has sent them over a socket, and all processes that
 * had the socket have ended. Such descriptors keep files and memory in use. */
void writable_release_in_flight(void);
/* Whether the container's directories are as empty as at the start. Waits for a moment if they are not:
 * the kernel may take that long to release files that were unlinked while open, or whose descriptors were
 * in flight. */
int writable_is_empty_again(void);

#endif
