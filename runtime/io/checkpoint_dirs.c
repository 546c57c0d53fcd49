// checkpoint_dirs: the directories under OUTPUT/checkpoints: their names, what cut-off saves have left, which steps stay.
#define _GNU_SOURCE
#include "checkpoint_impl.h"
#include "rundir.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

// For faults that end nothing: they become a warning, and the thread's record is free for the next.
void ckpt_warn_instead(const char *consequence)
{
    const ErrorRecord *e = error_last();
    if (*e->what) log_warn("%s: %s: %s", consequence, e->place, e->what);
    error_clear();
}

// ---- directories ------------------------------------------------------------------------------------------
// "step-00000100" -> 100; -1 for any other name.
static int64_t step_of(const char *name)
{
    if (strncmp(name, "step-", 5) != 0) return -1;
    const char *digits = name + 5;
    size_t n = strspn(digits, "0123456789");
    bool printed_so = n == 8 || (n > 8 && n <= 18 && *digits != '0');
    return printed_so && !digits[n] ? strtoll(digits, NULL, 10) : -1;
}

static int newer_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

// The published steps of a checkpoints directory, newest first; none when there is no such directory.
int ckpt_list_steps(const char *parent, int64_t **steps, size_t *n)
{
    *steps = NULL;
    *n = 0;
    DIR *d = opendir(parent);
    if (!d) return errno == ENOENT ? OK : fail_errno(parent, "cannot read the directory");
    for (struct dirent *e; (e = readdir(d));) {
        int64_t step = step_of(e->d_name);
        if (step < 0) continue;
        *steps = xrealloc(*steps, (*n + 1) * sizeof **steps);
        (*steps)[(*n)++] = step;
    }
    closedir(d);
    if (*n) qsort(*steps, *n, sizeof **steps, newer_first);
    return OK;
}

char *ckpt_step_path(const char *parent, const char *prefix, int64_t step)
{
    return xasprintf("%s/%sstep-%08" PRId64, parent, prefix, step);
}

char *checkpoint_path(const char *output, int64_t step)
{
    return xasprintf("%s/checkpoints/step-%08" PRId64, output, step);
}

// What saves that were cut off have left. The run's lock keeps others out, so nobody is writing there now.
void ckpt_sweep(const char *parent)
{
    DIR *d = opendir(parent);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, ".tmp-", 5) != 0 && strncmp(e->d_name, ".del-", 5) != 0) continue;
        char *path = xasprintf("%s/%s", parent, e->d_name);
        if (remove_tree(path) < 0) ckpt_warn_instead("an unfinished checkpoint stays");
        free(path);
    }
    closedir(d);
}

int ckpt_sync_path(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return fail_errno(path, "cannot open");
    int status = fsync(fd) < 0 ? fail_errno(path, "cannot flush to the disk") : OK;
    close(fd);
    return status;
}

// Refusing early is better than filling the disk to the last byte and failing then.
int ckpt_check_room(const char *parent, uint64_t bytes)
{
    struct statvfs fs;
    if (statvfs(parent, &fs) < 0 || !fs.f_blocks) return OK; // some file systems do not tell
    uint64_t need = bytes + bytes / 50 + (1u << 20), have = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (have >= need) return OK;
    return fail(E_FAILED, parent, "free some space, lower checkpoint.keep, or set `output` to another disk",
                "No space left on device: a checkpoint needs %.1f MB, %.1f MB are free", (double)need / 1e6,
                (double)have / 1e6);
}

// ---- retention --------------------------------------------------------------------------------------------
// Whether a step looks whole, at the cost of reading its MANIFEST: size and digests are there, the bytes are
// not read again.
static bool looks_whole(const char *dir)
{
    char *path = xasprintf("%s/MANIFEST", dir), *file = xasprintf("%s/state.h5", dir);
    Manifest m;
    struct stat st;
    bool whole = manifest_read(&m, path) == OK;
    if (whole) {
        whole = stat(file, &st) == 0 && (uint64_t)st.st_size == m.file_bytes;
        manifest_free(&m);
    } else {
        error_clear();
    }
    free(path);
    free(file);
    return whole;
}

// Renamed first: a removal that is cut off leaves no damaged step behind.
static void drop_step(const char *parent, int64_t step)
{
    char *dir = ckpt_step_path(parent, "", step), *doomed = ckpt_step_path(parent, ".del-", step);
    int status = rename(dir, doomed) < 0 ? fail_errno(dir, "cannot rename") : remove_tree(doomed);
    if (status < 0) ckpt_warn_instead("an old checkpoint stays");
    free(dir);
    free(doomed);
}

// Steps older than the keep-th that looks whole go, the one just saved never.
void ckpt_retain(const char *parent, int64_t saved, int keep)
{
    int64_t *steps;
    size_t n;
    int whole = 0;
    if (keep <= 0) return;
    if (ckpt_list_steps(parent, &steps, &n) < 0) ckpt_warn_instead("old checkpoints stay");
    for (size_t i = 0; i < n; i++) {
        if (whole >= keep && steps[i] != saved) {
            drop_step(parent, steps[i]);
            continue;
        }
        char *dir = ckpt_step_path(parent, "", steps[i]);
        whole += looks_whole(dir);
        free(dir);
    }
    free(steps);
}
