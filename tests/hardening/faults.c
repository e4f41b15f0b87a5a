/* Faults of the machine, planted before the Nth call of an operation on a path: for tests, by LD_PRELOAD.
 *
 * FAULT_OP is write, fsync, rename or open; FAULT_AFTER the number of calls that pass; FAULT_ERROR an errno, or -1 to
 * kill the process; FAULT_PATH a part of the path. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int passed;

static int fails(const char *operation, const char *path) {
    const char *wanted = getenv("FAULT_OP"), *part = getenv("FAULT_PATH");
    if (!wanted || strcmp(wanted, operation) || !path || !part || !strstr(path, part)) return 0;
    if (__atomic_fetch_add(&passed, 1, __ATOMIC_SEQ_CST) < atoi(getenv("FAULT_AFTER"))) return 0;
    int error = atoi(getenv("FAULT_ERROR"));
    if (error < 0) kill(getpid(), SIGKILL);
    errno = error;
    return 1;
}

static int descriptor_fails(const char *operation, int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(operation, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *data, size_t size) {
    return descriptor_fails("write", descriptor) ? -1 : NEXT(write)(descriptor, data, size);
}

int fsync(int descriptor) { return descriptor_fails("fsync", descriptor) ? -1 : NEXT(fsync)(descriptor); }

int rename(const char *from, const char *to) { return fails("rename", to) ? -1 : NEXT(rename)(from, to); }

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return (flags & O_CREAT) && fails("open", path) ? -1 : NEXT(open64)(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return (flags & O_CREAT) && fails("open", path) ? -1 : NEXT(open)(path, flags, mode);
}
