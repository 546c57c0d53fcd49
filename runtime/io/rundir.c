// rundir: the files of a run besides checkpoints. Owns the directory's lock for as long as the run lives, so
// that no second run, and no rank of the last one that is slow to die, writes to the same files.
#define _GNU_SOURCE
#include "rundir.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum { LOCK_WAIT_MS = 3000, LOCK_RETRY_MS = 50 };

struct RunDir {
    char *path;
    bool writes;    // rank 0
    int lock_fd;    // -1: none
    int metrics_fd; // -1: not opened yet
};

// By these a directory is known to hold a run.
static const char *const traces[] = {"recipe.yaml", "metrics.jsonl", "checkpoints"};
// What --force removes. Not model/ nor recipe.yaml: the first may be the user's own, the second is replaced
// at once.
static const char *const products[] = {"metrics.jsonl", "checkpoints", "adapter",
                                       "eval.json",     "report.html", "status.json"};

// ---- removing ---------------------------------------------------------------------------------------------
static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st, (void)kind, (void)ftw;
    return remove(path);
}

int remove_tree(const char *path)
{
    if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 || errno == ENOENT) return OK;
    return fail_errno(path, "cannot remove");
}

static int remove_products(const RunDir *r)
{
    int status = OK;
    for (size_t i = 0; i < COUNT_OF(products) && status == OK; i++) {
        char *path = xasprintf("%s/%s", r->path, products[i]);
        status = remove_tree(path);
        free(path);
    }
    return status;
}

// ---- lock -------------------------------------------------------------------------------------------------
// Who holds the lock: the file's text, "pid N on HOST".
static void read_holder(int fd, char *who, size_t bytes)
{
    ssize_t n = pread(fd, who, bytes - 1, 0);
    who[MAX(n, 0)] = 0;
    who[strcspn(who, "\n")] = 0;
}

static void write_holder(int fd)
{
    char text[320], host[256] = "";
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "pid %ld on %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n) log_debug("the lock file's text was not written");
}

static int lock_within(int fd, int wait_ms)
{
    for (double start = now_ms();;) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return 0;
        if (errno == EINTR) continue;
        if (errno != EWOULDBLOCK || now_ms() - start > wait_ms) return -1;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_RETRY_MS * 1000000L}, NULL);
    }
}

static int take_lock(RunDir *r)
{
    char *path = xasprintf("%s/.lock", r->path), who[320];
    int status = OK, fd = r->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = fail_errno(path, "cannot create");
    } else if (lock_within(fd, LOCK_WAIT_MS) == 0) {
        write_holder(fd);
    } else if (errno == EWOULDBLOCK) {
        read_holder(fd, who, sizeof who);
        status = fail(E_INPUT, r->path, "wait until it has ended, or give this run another `output`",
                      "another run is writing to this directory (%s)", *who ? who : "its name is not known");
    } else {
        log_warn("%s: this file system has no locks (%s): take care that only one run writes here", r->path,
                 strerror(errno));
    }
    free(path);
    return status;
}

// ---- opening ----------------------------------------------------------------------------------------------
static int refuse_foreign_run(const RunDir *r)
{
    for (size_t i = 0; i < COUNT_OF(traces); i++) {
        char *path = xasprintf("%s/%s", r->path, traces[i]);
        bool found = path_exists(path);
        free(path);
        if (found)
            return fail(E_INPUT, r->path, "`--resume` goes on with it, `--force` starts over; or give another `output`",
                        "this directory holds a run already (%s)", traces[i]);
    }
    return OK;
}

// "NAME.tmp-PID" beside the files that are replaced atomically: of a run that was killed, the lock sees to that.
static void sweep_unfinished(const RunDir *r)
{
    static const char *const names[] = {"status.json", "recipe.yaml", "metrics.jsonl", "eval.json", "report.html"};
    DIR *d = opendir(r->path);
    for (struct dirent *e; d && (e = readdir(d));)
        for (size_t i = 0; i < COUNT_OF(names); i++) {
            const size_t n = strlen(names[i]);
            if (strncmp(e->d_name, names[i], n) != 0 || strncmp(e->d_name + n, ".tmp-", 5) != 0) continue;
            if (unlinkat(dirfd(d), e->d_name, 0) < 0) log_debug("%s/%s was not removed", r->path, e->d_name);
        }
    if (d) closedir(d);
}

static int prepare(RunDir *r, bool resume, bool force)
{
    TRY(make_dirs(r->path));
    TRY(take_lock(r));
    sweep_unfinished(r);
    if (resume) return OK;
    return force ? remove_products(r) : refuse_foreign_run(r);
}

int rundir_open(RunDir **out, Comm *c, const char *output, bool resume, bool force)
{
    RunDir *r = xcalloc(1, sizeof *r);
    r->path = xstrdup(output);
    r->writes = comm_rank(c) == 0;
    r->lock_fd = r->metrics_fd = -1;
    int status = comm_agree(c, r->writes ? prepare(r, resume, force) : OK);
    if (status < 0)
        rundir_close(r);
    else
        *out = r;
    return status;
}

void rundir_close(RunDir *r)
{
    if (!r) return;
    if (r->metrics_fd >= 0) close(r->metrics_fd);
    if (r->lock_fd >= 0) close(r->lock_fd); // gives the lock back
    free(r->path);
    free(r);
}

const char *rundir_path(const RunDir *r)
{
    return r->path;
}

// ---- files ------------------------------------------------------------------------------------------------
int rundir_write(RunDir *r, const char *name, const void *data, size_t bytes)
{
    if (!r->writes) return OK;
    char *path = xasprintf("%s/%s", r->path, name);
    int status = file_write_atomic(path, data, bytes);
    free(path);
    return status;
}

int rundir_status(RunDir *r, const char *state, int code, int rank, int64_t step, const char *reason)
{
    if (!r->writes) return OK;
    char utc[32];
    time_t now = time(NULL);
    struct tm tm;
    strftime(utc, sizeof utc, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    if (!reason) reason = "";
    Buf b = {0};
    buf_printf(&b, "{\"state\": \"%s\", \"code\": %d, \"rank\": %d, \"step\": %" PRId64 ", \"reason\": ", state, code,
               rank, step);
    buf_json_string(&b, reason, strlen(reason));
    buf_printf(&b, ", \"updated_utc\": \"%s\"}\n", utc);
    int status = rundir_write(r, "status.json", b.data, b.len);
    buf_free(&b);
    return status;
}

int rundir_failed(RunDir *r, Comm *c, int status, int64_t step)
{
    const ErrorRecord *e = error_last();
    char *reason = *e->what ? xasprintf("%s%s%s", e->place, *e->place ? ": " : "", e->what) : NULL;
    size_t bytes = reason ? strlen(reason) : 0;
    int64_t teller = reason ? comm_rank(c) : INT64_MAX;
    int told = OK;
    if (e->agreed) told = comm_all_reduce(c, &teller, 1, DT_I64, REDUCE_MIN);
    if (e->agreed && told == OK && teller < comm_size(c)) {
        if (teller != comm_rank(c)) free(reason);
        told = comm_broadcast_blob(c, (void **)&reason, &bytes, (int)teller);
    }
    RunDir here = *r;
    here.writes = r->writes || !e->agreed; // then the others may not know of it, nor live to tell
    if (told == OK)
        told = rundir_status(&here, status == E_PREEMPTED ? "preempted" : "failed", error_exit_code(status),
                             teller < comm_size(c) ? (int)teller : comm_rank(c), step, reason);
    free(reason);
    return told;
}

int rundir_lost(const RunDir *r, int rank, int64_t step, const char *reason)
{
    RunDir here = *r;
    here.writes = true; // rank 0 may be the one that is lost
    return rundir_status(&here, "failed", error_exit_code(E_FAILED), rank, step, reason);
}

// ---- metrics.jsonl ----------------------------------------------------------------------------------------
static int open_metrics(RunDir *r)
{
    if (r->metrics_fd >= 0) return OK;
    char *path = xasprintf("%s/metrics.jsonl", r->path);
    r->metrics_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    int status = r->metrics_fd < 0 ? fail_errno(path, "cannot open") : OK;
    free(path);
    return status;
}

// A line is written whole or, on a full disk, taken back: readers never meet a part of one.
static int append_line(RunDir *r, const Buf *line)
{
    off_t before = lseek(r->metrics_fd, 0, SEEK_END);
    ssize_t n = write(r->metrics_fd, line->data, line->len);
    if (n == (ssize_t)line->len) return OK;
    if (n >= 0) errno = ENOSPC;
    int status = fail_errno(tmpf("%s/metrics.jsonl", r->path), "cannot write");
    if (before >= 0 && n > 0 && ftruncate(r->metrics_fd, before) < 0)
        log_debug("a part of a line was left in metrics.jsonl");
    return status;
}

int rundir_metric(RunDir *r, const char *json_members)
{
    if (!r->writes) return OK;
    TRY(open_metrics(r));
    Buf line = {0};
    buf_printf(&line, "{%s}\n", json_members);
    int status = append_line(r, &line);
    buf_free(&line);
    return status;
}

static bool is_evaluation(json_t *line)
{
    const char *key;
    json_t *value;
    json_object_foreach(line, key, value) if (strncmp(key, "eval/", 5) == 0) return true;
    return false;
}

// Whether a line belongs to the run so far. What a crash left half-written is no JSON and goes.
static bool keeps_line(const char *line, size_t bytes, int64_t step, int64_t evaluated)
{
    if (!bytes || line[bytes - 1] != '\n') return false;
    json_t *root = json_loadb(line, bytes, 0, NULL);
    json_t *at = json_object_get(root, "step");
    bool keeps = json_is_object(root) && (!at || json_integer_value(at) <= (is_evaluation(root) ? evaluated : step));
    json_decref(root);
    return keeps;
}

int rundir_rewind(RunDir *r, int64_t step, int64_t evaluated)
{
    if (!r->writes) return OK;
    if (r->metrics_fd >= 0) close(r->metrics_fd);
    r->metrics_fd = -1;
    char *path = xasprintf("%s/metrics.jsonl", r->path), *line = NULL;
    size_t capacity = 0, dropped = 0;
    Buf kept = {0};
    FILE *f = fopen(path, "re");
    for (ssize_t n; f && (n = getline(&line, &capacity, f)) > 0;) {
        if (keeps_line(line, (size_t)n, step, evaluated))
            buf_put(&kept, line, (size_t)n);
        else
            dropped++;
    }
    int status = OK;
    if (f && ferror(f)) status = fail_errno(path, "cannot read");
    if (f) fclose(f);
    if (status == OK && dropped) status = file_write_atomic(path, kept.data, kept.len);
    free(line);
    free(path);
    buf_free(&kept);
    return status;
}
