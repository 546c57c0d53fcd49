// Implementation of base.h. xxHash is included here only.
#define _GNU_SOURCE
#include "base.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#undef fail
#undef fail_errno

// ---- error record ---------------------------------------------------------------------------------------------------
static _Thread_local ErrorRecord record;

int fail(int code, const char *place, const char *hint, const char *fmt, ...)
{
    if (record.code) return record.code; // the first fault is the cause; what follows from it is noise
    record.code = code;
    snprintf(record.place, sizeof record.place, "%s", place ? place : "");
    snprintf(record.hint, sizeof record.hint, "%s", hint ? hint : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(record.what, sizeof record.what, fmt, ap);
    va_end(ap);
    return code;
}

int fail_errno(const char *path, const char *what)
{
    int e = errno;
    const char *hint = e == ENOSPC || e == EDQUOT  ? "free some space, or set `output` to another disk"
                       : e == EACCES || e == EPERM ? "check the owner and the permissions of this path"
                                                   : NULL;
    bool users_fault = e == ENOENT || e == EACCES || e == EPERM || e == EROFS || e == ENOTDIR || e == EISDIR;
    return fail(users_fault ? E_INPUT : E_FAILED, path, hint, "%s: %s", what, strerror(e));
}

const ErrorRecord *error_last(void)
{
    return &record;
}
void error_adopt(const ErrorRecord *e)
{
    record = *e;
}
void error_clear(void)
{
    memset(&record, 0, sizeof record);
}
void error_mark_agreed(void)
{
    record.agreed = true;
}

void error_trace(const char *file, int line, const char *call)
{
    size_t used = strlen(record.trace);
    snprintf(record.trace + used, sizeof record.trace - used, "  at %s:%d %s\n", file, line, call);
}

int error_exit_code(int status)
{
    switch (status) {
    case OK: return 0;
    case E_INPUT: return 2;
    case E_MISSING: return 3;
    case E_PREEMPTED: return 75;
    default: return status > 0 ? 0 : 1;
    }
}

const char *tmpf(const char *fmt, ...)
{
    static _Thread_local char ring[8][512];
    static _Thread_local unsigned next;
    char *s = ring[next++ % COUNT_OF(ring)];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s, sizeof ring[0], fmt, ap);
    va_end(ap);
    return s;
}

_Noreturn void assert_fail(const char *file, int line, const char *cond)
{
    fprintf(stderr, "attune: bug: %s:%d: %s\n", file, line, cond);
    abort();
}

// ---- logging --------------------------------------------------------------------------------------------------------
static int log_rank, log_size = 1;

void log_set_rank(int rank, int size)
{
    log_rank = rank;
    log_size = size;
}

static void log_line(const char *prefix, const char *fmt, va_list ap)
{
    char text[2048]; // one write per line, so that the lines of several ranks do not mix
    int n = 0;
    if (*prefix && log_size > 1)
        n = snprintf(text, sizeof text, "attune: %srank %d: ", prefix, log_rank);
    else if (*prefix)
        n = snprintf(text, sizeof text, "attune: %s", prefix);
    n += vsnprintf(text + n, sizeof text - (size_t)n - 1, fmt, ap);
    n = MIN(n, (int)sizeof text - 2);
    text[n++] = '\n';
    fwrite(text, 1, (size_t)n, stderr);
}

void log_info(const char *fmt, ...)
{
    if (log_rank) return;
    va_list ap;
    va_start(ap, fmt);
    log_line("", fmt, ap);
    va_end(ap);
}

void log_warn(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    log_line("warning: ", fmt, ap);
    va_end(ap);
}

void log_debug(const char *fmt, ...)
{
    static int on = -1;
    if (on < 0) on = getenv("ATTUNE_DEBUG") != NULL;
    if (!on) return;
    va_list ap;
    va_start(ap, fmt);
    log_line("debug: ", fmt, ap);
    va_end(ap);
}

// ---- memory ---------------------------------------------------------------------------------------------------------
static void *checked(void *p, size_t bytes)
{
    if (!p && bytes) {
        fprintf(stderr,
                "attune: error: out of memory (%zu bytes asked)\n  hint: `attune plan RECIPE` tells what a run needs\n",
                bytes);
        _exit(1);
    }
    return p;
}

void *xmalloc(size_t bytes)
{
    return checked(malloc(bytes), bytes);
}
void *xcalloc(size_t count, size_t bytes)
{
    return checked(calloc(count, bytes), count && bytes);
}
void *xrealloc(void *p, size_t bytes)
{
    return checked(realloc(p, bytes), bytes);
}
char *xstrdup(const char *s)
{
    return checked(strdup(s), 1);
}
char *xstrndup(const char *s, size_t n)
{
    return checked(strndup(s, n), 1);
}

char *xasprintf(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    if (vasprintf(&s, fmt, ap) < 0) s = NULL;
    va_end(ap);
    return checked(s, 1);
}

struct Arena {
    const char *name;
    char *base; // NULL: measuring
    size_t capacity, used, peak;
    ArenaSource from; // obtain NULL: this process's memory
};

enum { HUGE_PAGE_BYTES = 2 << 20 };

static Arena *arena_new(const char *name, size_t capacity_bytes)
{
    Arena *a = xcalloc(1, sizeof *a);
    a->name = name;
    a->capacity = ROUND_UP(MAX(capacity_bytes, ARENA_ALIGN), 4096);
    return a;
}

int arena_open_at(Arena **out, const char *name, size_t capacity_bytes, const ArenaSource *from)
{
    Arena *a = arena_new(name, capacity_bytes);
    void *memory = NULL;
    int status = from->obtain(from->ctx, &memory, a->capacity, name);
    if (status < 0) {
        free(a);
        return status;
    }
    a->from = *from;
    a->base = memory;
    *out = a;
    return OK;
}

int arena_open(Arena **out, const char *name, size_t capacity_bytes, bool measure)
{
    Arena *a = arena_new(name, capacity_bytes);
    if (!measure) {
        a->base = mmap(NULL, a->capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (a->base == MAP_FAILED) {
            free(a);
            return fail(E_FAILED, name, "`attune plan RECIPE` tells what a run needs", "cannot reserve %zu bytes: %s",
                        capacity_bytes, strerror(errno));
        }
        // Fewer faults at the first touch, fewer misses later. A hint: not every kernel has huge pages.
        if (capacity_bytes >= HUGE_PAGE_BYTES) madvise(a->base, a->capacity, MADV_HUGEPAGE);
    }
    *out = a;
    return OK;
}

size_t arena_resident(size_t capacity_bytes, size_t used)
{
    const size_t page = capacity_bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 4096;
    return MIN(ROUND_UP(used, page), ROUND_UP(capacity_bytes, 4096));
}

void arena_free(Arena *a)
{
    if (!a) return;
    if (a->from.release)
        a->from.release(a->from.ctx, a->base, a->capacity);
    else if (a->base)
        munmap(a->base, a->capacity);
    free(a);
}

void *arena_alloc(Arena *a, size_t bytes)
{
    if (!bytes) return NULL;
    size_t at = a->used;
    a->used = ROUND_UP(at + bytes, ARENA_ALIGN);
    a->peak = MAX(a->peak, a->used);
    if (!a->base) return NULL;
    if (a->used > a->capacity) {
        fprintf(stderr, "attune: bug: arena %s holds %zu bytes, %zu asked\n", a->name, a->capacity, a->used);
        abort();
    }
    return a->base + at;
}

size_t arena_mark(const Arena *a)
{
    return a->used;
}
size_t arena_peak(const Arena *a)
{
    return a->peak;
}
bool arena_measuring(const Arena *a)
{
    return !a->base;
}
void arena_reset(Arena *a, size_t mark)
{
    ASSERT(mark <= a->used);
    a->used = mark;
}

static void buf_reserve(Buf *b, size_t more)
{
    if (b->len + more + 1 <= b->cap) return;
    b->cap = MAX(b->cap * 2, b->len + more + 1);
    b->cap = MAX(b->cap, 64);
    b->data = xrealloc(b->data, b->cap);
}

void buf_put(Buf *b, const void *data, size_t bytes)
{
    buf_reserve(b, bytes);
    if (bytes) memcpy(b->data + b->len, data, bytes);
    b->len += bytes;
    b->data[b->len] = 0;
}

void buf_puts(Buf *b, const char *s)
{
    buf_put(b, s, strlen(s));
}

void buf_printf(Buf *b, const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    ASSERT(n >= 0);
    buf_reserve(b, (size_t)n);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, again);
    va_end(again);
    b->len += (size_t)n;
}

void buf_json_string(Buf *b, const char *s, size_t bytes)
{
    buf_put(b, "\"", 1);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)s[i];
        switch (c) {
        case '"': buf_puts(b, "\\\""); break;
        case '\\': buf_puts(b, "\\\\"); break;
        case '\n': buf_puts(b, "\\n"); break;
        case '\r': buf_puts(b, "\\r"); break;
        case '\t': buf_puts(b, "\\t"); break;
        default:
            if (c < 0x20)
                buf_printf(b, "\\u%04x", c);
            else
                buf_put(b, &s[i], 1);
        }
    }
    buf_put(b, "\"", 1);
}

void buf_free(Buf *b)
{
    free(b->data);
    memset(b, 0, sizeof *b);
}

int edit_distance(const char *a, const char *b)
{
    enum { LIMIT = 63 };
    int n = (int)strnlen(a, LIMIT), m = (int)strnlen(b, LIMIT);
    uint8_t d[LIMIT + 1][LIMIT + 1];
    for (int i = 0; i <= n; i++) d[i][0] = (uint8_t)i;
    for (int j = 0; j <= m; j++) d[0][j] = (uint8_t)j;
    for (int i = 1; i <= n; i++) {
        for (int j = 1; j <= m; j++) {
            int best = MIN(d[i - 1][j], d[i][j - 1]) + 1;
            best = MIN(best, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) best = MIN(best, d[i - 2][j - 2] + 1);
            d[i][j] = (uint8_t)best;
        }
    }
    return d[n][m];
}

// ---- files ----------------------------------------------------------------------------------------------------------
int file_read(const char *path, size_t limit_bytes, char **out, size_t *bytes)
{
    int status = OK, fd = open(path, O_RDONLY | O_CLOEXEC);
    char *data = NULL;
    if (fd < 0) return fail_errno(path, "cannot open");
    struct stat st;
    if (fstat(fd, &st) < 0) {
        status = fail_errno(path, "cannot stat");
        goto done;
    }
    if (!S_ISREG(st.st_mode)) {
        status = fail(E_INPUT, path, NULL, "not a regular file");
        goto done;
    }
    if ((uint64_t)st.st_size > limit_bytes) {
        status = fail(E_INPUT, path, NULL, "%lld bytes, at most %zu are read", (long long)st.st_size, limit_bytes);
        goto done;
    }
    size_t size = (size_t)st.st_size, have = 0;
    data = xmalloc(size + 1);
    while (have < size) {
        ssize_t n = read(fd, data + have, size - have);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = fail_errno(path, "cannot read");
            goto done;
        }
        if (n == 0) break; // the file shrank meanwhile
        have += (size_t)n;
    }
    data[have] = 0;
    *out = data;
    data = NULL;
    if (bytes) *bytes = have;
done:
    free(data);
    close(fd);
    return status;
}

int file_write_all(int fd, const void *from, size_t bytes)
{
    const char *data = from;
    while (bytes) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        data += n;
        bytes -= (size_t)n;
    }
    return 0;
}

int file_sync_parent(const char *path)
{
    char *dir = xstrdup(path), *slash = strrchr(dir, '/');
    if (slash) *slash = 0;
    int fd = open(slash ? (*dir ? dir : "/") : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0) return -1;
    int r = fsync(fd);
    close(fd);
    return r;
}

int file_write_atomic(const char *path, const void *data, size_t bytes)
{
    char *beside = xasprintf("%s.tmp-%ld", path, (long)getpid());
    int status = OK, fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        status = fail_errno(path, "cannot create");
    else if (file_write_all(fd, data, bytes) < 0 || fsync(fd) < 0)
        status = fail_errno(path, "cannot write");
    if (fd >= 0 && close(fd) < 0 && status == OK) status = fail_errno(path, "cannot close");
    if (status == OK && rename(beside, path) < 0) status = fail_errno(path, "cannot rename into place");
    if (status == OK && file_sync_parent(path) < 0) status = fail_errno(path, "cannot sync the directory");
    if (status < 0 && fd >= 0) unlink(beside);
    free(beside);
    return status;
}

int make_dirs(const char *path)
{
    char *p = xstrdup(path);
    int status = OK;
    for (char *s = p + 1;; s++) {
        if (*s && *s != '/') continue;
        char keep = *s;
        *s = 0;
        if (mkdir(p, 0777) < 0 && errno != EEXIST) {
            status = fail_errno(path, "cannot create the directory");
            break;
        }
        if (!keep) break;
        *s = keep;
    }
    if (status == OK && !path_is_dir(path)) status = fail(E_INPUT, path, NULL, "exists and is not a directory");
    free(p);
    return status;
}

bool path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool path_is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool utf8_valid(const char *text, size_t bytes, size_t *bad_at)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < bytes) {
        unsigned c = s[i];
        size_t n = c < 0x80 ? 1 : c >= 0xC2 && c < 0xE0 ? 2 : (c & 0xF0) == 0xE0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
        if (!n || i + n > bytes) break;
        uint32_t cp = n == 1 ? c : c & (0xFFu >> (n + 1));
        size_t j = 1;
        for (; j < n && (s[i + j] & 0xC0) == 0x80; j++) cp = cp << 6 | (s[i + j] & 0x3F);
        if (j < n || (n == 3 && cp < 0x800) || (n == 4 && (cp < 0x10000 || cp > 0x10FFFF)) ||
            (cp >= 0xD800 && cp < 0xE000))
            break;
        i += n;
    }
    if (i < bytes && bad_at) *bad_at = i;
    return i == bytes;
}

// ---- random numbers -------------------------------------------------------------------------------------------------
void philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

uint64_t hash64(const void *data, size_t bytes, uint64_t seed)
{
    return XXH64(data, bytes, seed);
}

bool hash64_file(const char *path, uint64_t *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const size_t piece = 1 << 20;
    char *data = xmalloc(piece);
    XXH64_state_t state;
    ssize_t n;
    XXH64_reset(&state, 0);
    while ((n = read(fd, data, piece)) > 0 || (n < 0 && errno == EINTR))
        if (n > 0) XXH64_update(&state, data, (size_t)n);
    *out = XXH64_digest(&state);
    free(data);
    close(fd);
    return n == 0;
}

// ---- clocks and readings --------------------------------------------------------------------------------------------
double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

size_t rss_bytes(void)
{
    long pages = 0, total = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return 0;
    if (fscanf(f, "%ld %ld", &total, &pages) != 2) pages = 0;
    fclose(f);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

size_t peak_rss_bytes(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (size_t)u.ru_maxrss * 1024;
}
