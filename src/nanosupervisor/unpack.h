/* Packs of code: one file that has all files, directories and links of a tree.
 *
 *   data      the contents of files, and the targets of links, one after another
 *   records   one for each directory, file and link, 32 bytes
 *   names     their names in the same order, each with a NUL
 *   footer    48 bytes
 *
 * The worker writes packs (src/nanoagent/code/pack.py has the same layout, and explains it). A pack may have been
 * damaged on the host's disk. Whatever a pack contains, only new files, directories and links inside one directory are
 * made from it. */
#ifndef UNPACK_H
#define UNPACK_H

#include "wire.h"

/* Make the tree of a pack in an open directory. Directories may exist already, but no file or link. Return 0, or -1
 * with errno: EBADMSG for a damaged pack. Add the number and the bytes of the files to the report. */
int unpack(const char *path, int to, struct ready_report *report);
/* Make the code in /slot/code, and the byte code in /slot/byte_code if there is some, in an open directory. If that
 * fails (most often because the code does not fit), the report has the errno. */
struct ready_report unpack_slot_code(int to);

#endif
