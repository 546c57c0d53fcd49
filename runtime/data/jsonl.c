// jsonl: JSON Lines files, read block by block so that a corpus need not fit in memory, and the checks a line has to pass
// before anything looks into it. A file may begin with a byte-order mark and may end its lines as on Windows.
#include "data/data_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES ((size_t)1 << 20)                // of a file with lines of a usual length
#define MOST_BYTES  (JSONL_LINE_BYTES + BLOCK_BYTES) // more than a longest line

int jsonl_open(Jsonl *j, const char *path)
{
    *j = (Jsonl){.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    if (j->fd < 0) return fail_errno(path, "cannot open");
    struct stat st;
    if (fstat(j->fd, &st) < 0) return fail_errno(path, "cannot stat");
    if (!S_ISREG(st.st_mode)) return fail(E_INPUT, path, "save the lines in a file first", "not a regular file");
    j->block = xmalloc(j->room = BLOCK_BYTES);
    return OK;
}

void jsonl_close(Jsonl *j)
{
    if (j->fd >= 0) close(j->fd);
    free(j->block);
    free(j->line);
    *j = (Jsonl){.fd = -1};
}

static int fill_block(Jsonl *j)
{
    while (j->len < j->room && !j->ended) {
        ssize_t n = read(j->fd, j->block + j->len, j->room - j->len);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(j->path, "cannot read");
        j->ended = n == 0;
        j->len += (size_t)n;
    }
    return OK;
}

static bool is_blank(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (text[i] != ' ' && text[i] != '\t') return false;
    return true;
}

static int line_too_long(const Jsonl *j, int64_t number)
{
    return fail(E_INPUT, tmpf("%s:%lld", j->path, (long long)number), "one JSON object a line",
                "the line is longer than %zu MiB", JSONL_LINE_BYTES >> 20);
}

static int add_line(Jsonl *j, size_t at, size_t bytes)
{
    j->number++;
    if (bytes > JSONL_LINE_BYTES) return line_too_long(j, j->number);
    if (j->number == 1 && bytes >= 3 && !memcmp(j->block + at, "\xEF\xBB\xBF", 3)) {
        at += 3;
        bytes -= 3;
    }
    if (bytes && j->block[at + bytes - 1] == '\r') bytes--;
    if (is_blank(j->block + at, bytes)) return OK;
    if (j->n == j->cap) {
        j->cap = MAX(1024, 2 * j->cap);
        j->line = xrealloc(j->line, (size_t)j->cap * sizeof *j->line);
    }
    j->line[j->n++] = (Line){j->block + at, bytes, j->number, j->offset + (int64_t)at};
    return OK;
}

// Cuts what lies in the block into lines; the last one counts without its newline only at the end of the file.
static int split_block(Jsonl *j)
{
    const char *newline;
    while ((newline = memchr(j->block + j->used, '\n', j->len - j->used))) {
        size_t bytes = (size_t)(newline - (j->block + j->used));
        TRY(add_line(j, j->used, bytes));
        j->used += bytes + 1;
    }
    if (j->ended && j->used < j->len) {
        TRY(add_line(j, j->used, j->len - j->used));
        j->used = j->len;
    }
    if (j->used || j->ended) return OK;
    if (j->room == MOST_BYTES) return line_too_long(j, j->number + 1);
    j->room = MIN(2 * j->room, MOST_BYTES); // not one line fits: the block grows, and jsonl_next tries again
    j->block = xrealloc(j->block, j->room);
    return OK;
}

int jsonl_next(Jsonl *j)
{
    j->n = 0;
    do { // a block of blank lines, or of part of a line, is not the end
        j->offset += (int64_t)j->used;
        j->len -= j->used;
        memmove(j->block, j->block + j->used, j->len);
        j->used = 0;
        TRY(fill_block(j));
        TRY(split_block(j));
    } while (!j->n && (j->used || !j->ended));
    return OK;
}

// Nesting is bounded before anything that works by recursion sees the line. Brackets in strings do not count.
static bool depth_ok(const char *text, size_t bytes)
{
    int depth = 0;
    bool string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (string) {
            if (c == '\\') i++;
            if (c == '"') string = false;
        } else if (c == '"') {
            string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_DEPTH) return false;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return true;
}

int jsonl_parse(json_t **out, const char *text, size_t bytes, const char *place)
{
    size_t bad_at = 0;
    const char *nul = memchr(text, 0, bytes);
    if (nul) return fail(E_INPUT, place, NULL, "a NUL byte at column %zu", (size_t)(nul - text) + 1);
    if (!utf8_valid(text, bytes, &bad_at))
        return fail(E_INPUT, place, "convert the file to UTF-8, for example with iconv",
                    "not UTF-8: byte 0x%02x at column %zu", (unsigned char)text[bad_at], bad_at + 1);
    if (!depth_ok(text, bytes)) return fail(E_INPUT, place, NULL, "nested deeper than %d levels", JSON_DEPTH);
    json_error_t e;
    json_t *row = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (!row) return fail(E_INPUT, place, "one JSON object a line", "not JSON: column %d: %s", e.column, e.text);
    if (!json_is_object(row)) {
        json_decref(row);
        return fail(E_INPUT, place, "one JSON object a line", "not a JSON object");
    }
    *out = row;
    return OK;
}
