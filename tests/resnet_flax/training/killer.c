/* Kills the process at the Nth change to a file below a directory: LD_PRELOAD it, then arm(directory, N).

   A write is done to its half first. With N 0 nothing is killed; changes() is their number. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static size_t length;
static atomic_long seen, wanted;

void arm(const char *directory, long number) {
    length = strlen(directory);
    memcpy(below, directory, length + 1);
    seen = 0;
    wanted = number;
}

long changes(void) { return seen; }

static int is_below(const char *path) { return length && !strncmp(path, below, length); }

/* Whether this is the change at which to end. */
static int counts(int fd, const char *path) {
    char link[64], found[PATH_MAX];
    if (!length) return 0;
    if (path == NULL || path[0] != '/') { /* relative to fd, or fd itself */
        if (fd == AT_FDCWD) return 0;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(link, found, sizeof found - 1);
        if (size < 0) return 0;
        found[size] = 0;
        path = found;
    }
    return is_below(path) && ++seen == wanted;
}

static void end(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define ORIGINAL(name) ((__typeof__(&name))original(#name))
static void *original(const char *name) { return dlsym(RTLD_NEXT, name); }

#define WRITES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define OPENING(name)                                                                   \
    int name(const char *path, int flags, ...) {                                        \
        va_list rest;                                                                   \
        va_start(rest, flags);                                                          \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                       \
        va_end(rest);                                                                   \
        if (WRITES(flags) && counts(AT_FDCWD, path)) end();                             \
        return ((int (*)(const char *, int, ...))original(#name))(path, flags, mode);   \
    }
#define OPENING_AT(name)                                                                        \
    int name(int fd, const char *path, int flags, ...) {                                        \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                               \
        va_end(rest);                                                                           \
        if (WRITES(flags) && counts(fd, path)) end();                                           \
        return ((int (*)(int, const char *, int, ...))original(#name))(fd, path, flags, mode);  \
    }
OPENING(open)
OPENING(open64)
OPENING_AT(openat)
OPENING_AT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    if (counts(fd, NULL)) {
        ORIGINAL(write)(fd, data, size / 2);
        end();
    }
    return ORIGINAL(write)(fd, data, size);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (counts(fd, NULL)) {
        ORIGINAL(writev)(fd, parts, count / 2);
        end();
    }
    return ORIGINAL(writev)(fd, parts, count);
}

#define WRITING_AT(name, offset_t)                                              \
    ssize_t name(int fd, const void *data, size_t size, offset_t offset) {      \
        if (counts(fd, NULL)) {                                                 \
            ORIGINAL(name)(fd, data, size / 2, offset);                         \
            end();                                                              \
        }                                                                       \
        return ORIGINAL(name)(fd, data, size, offset);                          \
    }
WRITING_AT(pwrite, off_t)
WRITING_AT(pwrite64, off64_t)

#define BEFORE(kind, name, parameters, arguments, fd, path)     \
    kind name parameters {                                      \
        if (counts(fd, path)) end();                            \
        return ORIGINAL(name) arguments;                        \
    }
BEFORE(int, rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
BEFORE(int, renameat, (int p, const char *a, int q, const char *b), (p, a, q, b), q, b)
BEFORE(int, renameat2, (int p, const char *a, int q, const char *b, unsigned f), (p, a, q, b, f), q, b)
BEFORE(int, link, (const char *a, const char *b), (a, b), AT_FDCWD, b)
BEFORE(int, linkat, (int p, const char *a, int q, const char *b, int f), (p, a, q, b, f), q, b)
BEFORE(int, symlink, (const char *a, const char *b), (a, b), AT_FDCWD, b)
BEFORE(int, unlink, (const char *a), (a), AT_FDCWD, a)
BEFORE(int, unlinkat, (int p, const char *a, int f), (p, a, f), p, a)
BEFORE(int, rmdir, (const char *a), (a), AT_FDCWD, a)
BEFORE(int, mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a)
BEFORE(int, mkdirat, (int p, const char *a, mode_t m), (p, a, m), p, a)
BEFORE(int, ftruncate, (int p, off_t n), (p, n), p, NULL)
BEFORE(int, ftruncate64, (int p, off64_t n), (p, n), p, NULL)
BEFORE(int, fsync, (int p), (p), p, NULL)
BEFORE(int, fdatasync, (int p), (p), p, NULL)
