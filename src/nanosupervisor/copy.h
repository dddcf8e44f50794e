/* Copies of a function's code. */
#ifndef COPY_H
#define COPY_H

#include "wire.h"

/* Copy all entries of one open directory into another; 0, or -1 with errno. Add the number and the bytes of
 * the files to the report. Close `from`. */
int copy_tree(int from, int to, struct ready_report *report);
/* Copy the code in /slot/code into an open directory. If that fails (most often because the code does not
 * fit), the report has the errno. */
struct ready_report copy_slot_code(int to);

#endif
