/* See copy.h. The code has at most 64 levels (unpack.c), so recursion is safe here. */
#define _GNU_SOURCE
#include "copy.h"
#include "directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

/* Give a copy the modification time of the original. */
static void copy_time(int to, const struct stat *info)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, info->st_mtim};
    if (futimens(to, times))
        errno = 0; /* the copy is complete without it */
}

static int copy_content(int from, int to, off_t left)
{
    while (left > 0) {
        ssize_t moved = sendfile(to, from, NULL, (size_t)left);
        if (moved == 0)
            errno = EIO;
        if (moved <= 0)
            return -1;
        left -= moved;
    }
    return 0;
}

static int copy_file(int from_directory, int to_directory, const char *name, const struct stat *info)
{
    int from = openat(from_directory, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (from < 0)
        return -1;
    mode_t mode = info->st_mode & 0111 ? 0755 : 0644;
    int to = openat(to_directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    int failed = to < 0 || copy_content(from, to, info->st_size), error = errno;
    if (!failed)
        copy_time(to, info);
    close(from);
    if (to >= 0)
        close(to);
    errno = error;
    return failed ? -1 : 0;
}

/* Copy a symbolic link without following it. */
static int copy_link(int from_directory, int to_directory, const char *name, const struct stat *info)
{
    char target[PATH_MAX];
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, info->st_mtim};
    ssize_t length = readlinkat(from_directory, name, target, sizeof target - 1);
    if (length < 0)
        return -1;
    target[length] = 0;
    return symlinkat(target, to_directory, name) || utimensat(to_directory, name, times, AT_SYMLINK_NOFOLLOW);
}

static int copy_subdirectory(int from_directory, int to_directory, const char *name, const struct stat *info,
                             struct ready_report *report)
{
    int from = -1, to = -1;
    int failed = mkdirat(to_directory, name, 0755) || (from = directory_open(from_directory, name)) < 0 ||
                 (to = directory_open(to_directory, name)) < 0;
    if (!failed && !(failed = copy_tree(from, to, report)))
        copy_time(to, info);
    else if (from >= 0 && to < 0)
        close(from);
    int error = errno;
    if (to >= 0)
        close(to);
    errno = error;
    return failed;
}

/* Copy one entry. Skip anything except files, directories and links; the code has nothing else. */
static int copy_entry(int from, int to, const char *name, struct ready_report *report)
{
    struct stat info;
    if (fstatat(from, name, &info, AT_SYMLINK_NOFOLLOW))
        return -1;
    if (S_ISDIR(info.st_mode))
        return copy_subdirectory(from, to, name, &info, report);
    report->files++;
    if (S_ISLNK(info.st_mode))
        return copy_link(from, to, name, &info);
    if (!S_ISREG(info.st_mode))
        return 0;
    report->bytes += (uint64_t)info.st_size;
    return copy_file(from, to, name, &info);
}

int copy_tree(int from, int to, struct ready_report *report)
{
    DIR *entries = fdopendir(from);
    struct dirent *entry;
    int failed = 0;
    if (!entries) {
        close(from);
        return -1;
    }
    while (!failed && (entry = readdir(entries)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            failed = copy_entry(from, to, entry->d_name, report);
    int error = errno;
    closedir(entries);
    errno = error;
    return failed ? -1 : 0;
}
