/* Copies of a function's code. */
#ifndef COPY_H
#define COPY_H

#include "wire.h"

/* Copy all entries of one open directory into another; 0, or -1 with errno. Add the number and the bytes of
 * the files to the report. Close `from`. */
int copy_tree(int from, int to, struct ready_report *report);

#endif
