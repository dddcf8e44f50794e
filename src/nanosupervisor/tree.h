/* What the supervisor does with folders: copy the code in, send the outputs, wipe everything. */
#ifndef TREE_H
#define TREE_H

#include "places.h"
#include "wire.h"

#include <time.h>

#define SLOT_CODE "/slot/code"

/* An open folder for each place: the container's own, or a sandbox's, which nobody can then swap. */
struct tree {
    int place[PLACE_COUNT];
};

/* The container's own places. */
extern struct tree container_tree;

/* Open the container's own places and remember how empty they are; once, before anything is in them. */
void tree_open_container(void);
/* Copy SLOT_CODE into that folder, writable; errno in the report when it does not fit. */
struct ready_report tree_copy_code(int to);
/* Copy all that is in one folder into another; 0 or -1 with errno. Takes over `from`. */
int tree_copy(int from, int to, struct ready_report *report);
/* Put the payload where the program finds it; 0 or an errno. */
int tree_write_payload(const struct tree *tree, const void *payload, size_t length);
/* Send every regular file below the output place, in the order of names; what is not sent is named with a
 * reason. Only when no process of the run lives any more: then nothing changes under our hands. */
void tree_send_outputs(const struct tree *tree, const struct run_request *request);
/* Whether a place has no free block or no free inode. */
int tree_is_full(const struct tree *tree);
/* How much the files in all places take. */
uint64_t tree_used_bytes(const struct tree *tree);
/* Whether any file in a place, but the payload, is at least that large and has changed since then
 * (CLOCK_REALTIME_COARSE). */
int tree_has_file_of(const struct tree *tree, uint64_t bytes, uint64_t payload_bytes, const struct timespec *since);
/* Remove everything in a place of the container. False when something stays. */
int tree_wipe_place(enum place place);
/* The same for all of them. */
int tree_wipe(void);
/* Have the kernel look for descriptors that are in flight between sockets nobody holds any more: they keep
 * files and memory. */
void tree_collect_sockets(void);
/* Whether the container's places are as empty again. Files that were unlinked while open may take a moment to
 * go, and those whose descriptors went into a cycle of Unix sockets wait for the kernel's collector: this
 * calls it. */
int tree_is_empty_again(void);

#endif
