// failio: a library to preload that makes one system call fail, as a worn disk does. By the environment:
//   FAILIO=CALL:N:ERRNO[:on]   the N-th CALL fails with ERRNO (EIO, ENOSPC); with "on" every later one too
//   FAILIO_DIR=PATH            only calls on files under PATH count
//   FAILIO_RANK=R              only in this rank of a job (PMI_RANK); 0 is also a process alone
//   FAILIO_FIRED=FILE          is created when a call was made to fail
// CALL: write (write, pwrite, writev), sync (fsync, fdatasync), rename, open, mkdir, fallocate, read (pread).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
    char call[16], dir[PATH_MAX];
    long number;
    int error;
    bool on, armed;
} fault;
static atomic_long calls;

__attribute__((constructor)) static void read_environment(void)
{
    const char *text = getenv("FAILIO"), *dir = getenv("FAILIO_DIR"), *rank = getenv("FAILIO_RANK"),
               *mine = getenv("PMI_RANK");
    char error[16], mode[8] = "";
    if (!text || !dir || sscanf(text, "%15[a-z]:%ld:%15[A-Z]:%7s", fault.call, &fault.number, error, mode) < 3) return;
    fault.error = strcmp(error, "ENOSPC") == 0 ? ENOSPC : EIO;
    fault.on = strcmp(mode, "on") == 0;
    snprintf(fault.dir, sizeof fault.dir, "%s/", dir);
    fault.armed = !rank || atoi(rank) == (mine ? atoi(mine) : 0);
}

static bool fires(const char *call, const char *path)
{
    if (!fault.armed || strcmp(call, fault.call) != 0 || strncmp(path, fault.dir, strlen(fault.dir)) != 0) return false;
    long n = atomic_fetch_add(&calls, 1) + 1;
    if (n < fault.number || (n > fault.number && !fault.on)) return false;
    const char *mark = getenv("FAILIO_FIRED");
    if (mark) close((int)syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_WRONLY, 0644));
    errno = fault.error;
    return true;
}

static bool fires_at(const char *call, int fd)
{
    char link[64], path[PATH_MAX];
    if (!fault.armed || strcmp(call, fault.call) != 0) return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return false;
    path[n] = 0;
    return fires(call, path);
}

#define REAL(f) ((__typeof__(&f))dlsym(RTLD_NEXT, #f))

ssize_t write(int fd, const void *data, size_t n)
{
    return fires_at("write", fd) ? -1 : REAL(write)(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *v, int n)
{
    return fires_at("write", fd) ? -1 : REAL(writev)(fd, v, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at)
{
    return fires_at("write", fd) ? -1 : REAL(pwrite)(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at)
{
    return fires_at("write", fd) ? -1 : REAL(pwrite64)(fd, data, n, at);
}
ssize_t pread(int fd, void *data, size_t n, off_t at)
{
    return fires_at("read", fd) ? -1 : REAL(pread)(fd, data, n, at);
}
ssize_t pread64(int fd, void *data, size_t n, off64_t at)
{
    return fires_at("read", fd) ? -1 : REAL(pread64)(fd, data, n, at);
}
int fsync(int fd)
{
    return fires_at("sync", fd) ? -1 : REAL(fsync)(fd);
}
int fdatasync(int fd)
{
    return fires_at("sync", fd) ? -1 : REAL(fdatasync)(fd);
}
int fallocate(int fd, int mode, off_t from, off_t n)
{
    return fires_at("fallocate", fd) ? -1 : REAL(fallocate)(fd, mode, from, n);
}
int rename(const char *from, const char *to)
{
    return fires("rename", to) ? -1 : REAL(rename)(from, to);
}
int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags)
{
    return fires("rename", to) ? -1 : REAL(renameat2)(at, from, to_at, to, flags);
}
int mkdir(const char *path, mode_t mode)
{
    return fires("mkdir", path) ? -1 : REAL(mkdir)(path, mode);
}

static int mode_of(int flags, va_list ap)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, int) : 0;
}
int open(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    int mode = mode_of(flags, ap);
    va_end(ap);
    return fires("open", path) ? -1 : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...)
{
    va_list ap;
    va_start(ap, flags);
    int mode = mode_of(flags, ap);
    va_end(ap);
    return fires("open", path) ? -1 : REAL(open64)(path, flags, mode);
}
