// base: what every file of attune needs and that belongs to no one layer: status codes and the error record, logging,
// arenas, growable buffers, counter-based random numbers, clocks and memory readings.
//
// Errors. A function that can fail returns int: 0 (OK) or one of the negative codes below. Whoever finds the fault calls
// fail() once, which fills the thread's error record (place, what, hint); callers pass the code on with TRY, which adds a
// line to the trace. Owners of resources end in a `done:` label. Only launch/main.c prints the record and ends the process.
// A broken invariant of our own is not an error but a bug: ASSERT.
#pragma once
#include <assert.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

// ---- status and error record --------------------------------------------------------------------------------------
enum {
    OK = 0,
    E_FAILED = -1,     // the run failed: non-finite loss, lost rank, full disk               exit 1
    E_INPUT = -2,      // the user's recipe, data, model or command line is wrong              exit 2
    E_MISSING = -3,    // something is missing on this machine                                 exit 3
    E_PREEMPTED = -75, // stopped by a signal after a good checkpoint                          exit 75
};

#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

typedef struct ErrorRecord {
    int code;
    char place[512]; // "file:line", "recipe.yaml:7", "model.safetensors: tensor NAME"; may be empty
    char what[1024];
    char hint[512];   // may be empty
    char trace[1024]; // "file:line call" per TRY, innermost first
    bool agreed;      // all ranks return this status: nobody is left waiting in a collective (set by comm_agree)
} ErrorRecord;

// Fills the calling thread's record (the first fault since error_clear wins) and returns code. place and hint may be NULL.
int fail(int code, const char *place, const char *hint, const char *fmt, ...) PRINTF_LIKE(4, 5);
// "No space left on device" and kin: fail(E_FAILED, path, ..., "WHAT: strerror(errno)"), with a hint where one is known.
int fail_errno(const char *path, const char *what);
#ifdef __clang_analyzer__ // it cannot see across files that what these return is negative
#define fail(code, ...)        ((void)fail(code, __VA_ARGS__), (code))
#define fail_errno(path, what) ((void)fail_errno(path, what), E_FAILED)
#endif
const ErrorRecord *error_last(void);
// Moves a record to this thread: for faults found on another thread (loader, async writer).
void error_adopt(const ErrorRecord *e);
void error_clear(void);
void error_mark_agreed(void);
void error_trace(const char *file, int line, const char *call);
int error_exit_code(int status); // 0, 1, 2, 3 or 75
// Formats into a thread-local ring of 8 buffers of 512 bytes: for the place and hint arguments of fail().
const char *tmpf(const char *fmt, ...) PRINTF_LIKE(1, 2);

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        int try_status_ = (call);                                                                                      \
        if (try_status_ < 0) {                                                                                         \
            error_trace(__FILE__, __LINE__, #call);                                                                    \
            return try_status_;                                                                                        \
        }                                                                                                              \
    } while (0)
// Inside a function that owns something: sets `status` and jumps to `done`.
#define TRY_DONE(call)                                                                                                 \
    do {                                                                                                               \
        if ((status = (call)) < 0) {                                                                                   \
            error_trace(__FILE__, __LINE__, #call);                                                                    \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)
#define ASSERT(cond) ((cond) ? (void)0 : assert_fail(__FILE__, __LINE__, #cond))
_Noreturn void assert_fail(const char *file, int line, const char *cond);

// ---- logging: to stderr ---------------------------------------------------------------------------------------------
// info: rank 0 only. warn: every rank, with its number when there are several. debug: only with ATTUNE_DEBUG=1.
void log_set_rank(int rank, int size);
void log_info(const char *fmt, ...) PRINTF_LIKE(1, 2);
void log_warn(const char *fmt, ...) PRINTF_LIKE(1, 2);
void log_debug(const char *fmt, ...) PRINTF_LIKE(1, 2);

// ---- memory ---------------------------------------------------------------------------------------------------------
// xmalloc and kin never return NULL (they abort on exhaustion: sizes that come from foreign files are checked before).
void *xmalloc(size_t bytes);
void *xcalloc(size_t count, size_t bytes);
void *xrealloc(void *p, size_t bytes);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *fmt, ...) PRINTF_LIKE(1, 2);
// a*b and a+b of sizes out of foreign files: false on overflow.
static inline bool mul_ok(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool add_ok(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

// An arena hands out memory that lives until the arena is reset or freed; ARENA_ALIGN-byte aligned. It reserves address space
// and commits pages as they are touched. An arena opened with measure=true hands out NULL and only counts: plans use it.
enum { ARENA_ALIGN = 256 }; // what GPUs fetch at once, and their matrix libraries like best
typedef struct Arena Arena;
int arena_open(Arena **out, const char *name, size_t capacity_bytes, bool measure);
// An arena in memory that is not this process's own: a device's. obtain takes all of it at once; release gives it back.
typedef struct ArenaSource {
    int (*obtain)(void *ctx, void **out, size_t bytes, const char *name);
    void (*release)(void *ctx, void *memory, size_t bytes);
    void *ctx;
} ArenaSource;
int arena_open_at(Arena **out, const char *name, size_t capacity_bytes, const ArenaSource *from);
void arena_free(Arena *a);                 // NULL is fine
void *arena_alloc(Arena *a, size_t bytes); // 0 bytes gives NULL, so that an empty buffer cannot be used by mistake
size_t arena_mark(const Arena *a);         // bytes in use now
void arena_reset(Arena *a, size_t mark);   // gives back what was allocated since mark
size_t arena_peak(const Arena *a);         // largest use so far, bytes
bool arena_measuring(const Arena *a);
// Memory that an arena of this capacity takes when `used` bytes of it are in use: its pages are small or large ones.
size_t arena_resident(size_t capacity_bytes, size_t used);

// A growable byte string, always NUL-terminated once written to. Zero-initialise; free with buf_free.
typedef struct Buf {
    char *data;
    size_t len, cap;
} Buf;
void buf_put(Buf *b, const void *data, size_t bytes);
void buf_puts(Buf *b, const char *s);
void buf_printf(Buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
void buf_json_string(Buf *b, const char *utf8, size_t bytes); // quoted and escaped
void buf_free(Buf *b);

// Damerau-Levenshtein distance (optimal string alignment): insertions, deletions, replacements, swaps of neighbours. For the
// "did you mean" of hints; strings are compared up to 63 bytes.
int edit_distance(const char *a, const char *b);

#define COUNT_OF(a)    (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)      ((a) < (b) ? (a) : (b))
#define MAX(a, b)      ((a) > (b) ? (a) : (b))
#define ROUND_UP(x, m) (((x) + (m)-1) / (m) * (m))
static inline bool streq(const char *a, const char *b)
{
    return __builtin_strcmp(a, b) == 0;
}

// ---- files ----------------------------------------------------------------------------------------------------------
int file_read(const char *path, size_t limit_bytes, char **out, size_t *bytes); // whole file, NUL added; caller frees
// Writes beside, flushes, fsyncs, renames, fsyncs the directory: a reader sees the old or the new file, never a part.
int file_write_atomic(const char *path, const void *data, size_t bytes);
// Its parts, for files too large to be held: 0, or -1 and errno.
int file_write_all(int fd, const void *data, size_t bytes);
int file_sync_parent(const char *path); // fsync of the directory that path lies in
int make_dirs(const char *path);        // mkdir -p
bool path_exists(const char *path);
bool path_is_dir(const char *path);
bool utf8_valid(const char *s, size_t bytes, size_t *bad_at); // strict: no surrogates, no overlong forms

// ---- random numbers: Philox4x32-10 (Salmon et al., SC'11), a function of key and counter, no state -------------------
// A draw is named by what it is for: key = (seed, hash of the name), counter = (stream, index). Never by rank.
void philox(uint64_t key, uint64_t counter_hi, uint64_t counter_lo, uint32_t out[4]);
uint64_t hash64(const void *data, size_t bytes, uint64_t seed); // xxHash64
bool hash64_file(const char *path, uint64_t *out);              // seed 0, read in pieces; false: it cannot be read
// A digest of bytes that come in pieces: XXH3, 64 bits. For large files; three times as fast as hash64.
typedef struct Digest Digest;
Digest *digest_open(void);
void digest_add(Digest *d, const void *data, size_t bytes);
uint64_t digest_take(Digest *d); // of what was added since it was opened or last taken
void digest_close(Digest *d);    // NULL is fine
static inline float u32_to_unit(uint32_t u)
{
    return (float)(u >> 8) * 0x1p-24f;
} // [0, 1)

// ---- clocks and readings --------------------------------------------------------------------------------------------
double now_ms(void);         // monotonic
size_t rss_bytes(void);      // resident set of this process now
size_t peak_rss_bytes(void); // and at its highest
