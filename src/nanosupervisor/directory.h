/* Reading directories that a hostile program has written to.
 *
 * A program can leave directories nested thousands of levels deep, without permissions, with links to
 * anywhere, FIFOs and files that look like devices. It can also create so many names that memory runs out.
 * Therefore the code that reads them works on an open descriptor and one name, never follows a link, and
 * holds a limited number of names in memory. */
#ifndef DIRECTORY_H
#define DIRECTORY_H

#include <stddef.h>

#define MAX_NAME 256 /* bytes of a name, with its NUL */

/* Open a subdirectory, never through a link; its descriptor, or -1 with errno. */
int directory_open(int parent, const char *name);

/* A directory while it is read. The buffer has room for only a few names, and is on the caller's stack;
 * readdir(3) would allocate a buffer for thousands of names. A wipe reads a directory again after each of
 * its subdirectories. With the small buffer it reads few names twice. */
struct listing {
    int directory;
    int error; /* errno of a read that failed, else 0 */
    size_t at, length;
    char buffer[1024] __attribute__((aligned(8)));
};

/* Start to read the names of an open directory. */
void listing_start(struct listing *listing, int directory);
/* Return the next name, without "." and "..". NULL: the end, or an error in `error`. */
const char *listing_next(struct listing *listing);

#endif
