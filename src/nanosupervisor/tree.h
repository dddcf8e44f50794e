/* What the supervisor does with folders: copy the code in, send the outputs, wipe everything. */
#ifndef TREE_H
#define TREE_H

#include "wire.h"

#define SLOT_CODE "/slot/code"
#define WORK_DIR "/work"
#define INPUT_DIR "/input"
#define PAYLOAD_FILE INPUT_DIR "/payload.json"
#define OUTPUT_DIR "/output"

/* Copy SLOT_CODE into WORK_DIR, writable; errno in the report when it does not fit. */
struct ready_report tree_copy_code(void);
/* Put the payload where the program finds it; 0 or an errno. */
int tree_write_payload(const void *payload, size_t length);
/* Send every regular file below OUTPUT_DIR, in the order of names; what is not sent is named with a reason.
 * Only when no process of the run lives any more: then nothing changes under our hands. */
void tree_send_outputs(const struct run_request *request);
/* Remove everything that a run can have left in any writable place. False when something stays. */
int tree_wipe(void);
/* Remember how empty the writable places are; once, before anything is in them. */
void tree_remember_empty(void);
/* Whether they are as empty again. Files that were unlinked while open may take a moment to go, and those
 * whose descriptors went into a cycle of Unix sockets wait for the kernel's collector: this calls it. */
int tree_is_empty_again(void);
/* Whether a writable place has no free block or no free inode. */
int tree_is_full(void);
/* Whether any file in a writable place is at least that large. */
int tree_has_file_of(uint64_t bytes);

#endif
