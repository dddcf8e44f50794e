/* Copies of a function's code. */
#ifndef COPY_H
#define COPY_H

#include "wire.h"

/* Copy all entries of one open directory into another; 0, or -1 with errno. Adds to the counts in the
 * report. Closes `from`. */
int copy_tree(int from, int to, struct ready_report *report);
/* Copy the code in /slot/code into an open directory. The report has an errno if that fails: the code does
 * not fit. */
struct ready_report copy_slot_code(int to);

#endif
