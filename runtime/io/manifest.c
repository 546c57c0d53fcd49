// manifest: writing, reading and checking the digests of a checkpoint. The reader trusts nothing: every
// number is bounded by the text's or the file's size before it is used.
#include "manifest.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE_BYTES = 256 << 10 };
static const char first_line[] = "attune-manifest 1\n";

void manifest_free(Manifest *m)
{
    free(m->tensors);
    free(m->leaves);
    free(m->text);
    memset(m, 0, sizeof *m);
}

// ---- building ---------------------------------------------------------------------------------------------
static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const ManifestTensor *)a)->offset, y = ((const ManifestTensor *)b)->offset;
    return (x > y) - (x < y);
}

static size_t leaves_of(uint64_t bytes)
{
    return (bytes + MANIFEST_LEAF_BYTES - 1) / MANIFEST_LEAF_BYTES;
}

static void cut_range(Manifest *m, uint64_t from, uint64_t to, int tensor)
{
    for (; from < to; from += MANIFEST_LEAF_BYTES)
        m->leaves[m->n_leaves++] =
            (ManifestLeaf){.offset = from, .bytes = MIN(to - from, (uint64_t)MANIFEST_LEAF_BYTES), .tensor = tensor};
}

void manifest_cut(Manifest *m)
{
    qsort(m->tensors, m->n_tensors, sizeof *m->tensors, by_offset);
    size_t most = leaves_of(m->file_bytes) + 2 * m->n_tensors + 1; // each edge of a tensor cuts one leaf more
    m->leaves = xcalloc(most, sizeof *m->leaves);
    uint64_t at = 0;
    for (size_t i = 0; i < m->n_tensors; i++) {
        const ManifestTensor *t = &m->tensors[i];
        cut_range(m, at, t->offset, -1);
        cut_range(m, t->offset, t->offset + t->bytes, (int)i);
        at = t->offset + t->bytes;
    }
    cut_range(m, at, m->file_bytes, -1);
    ASSERT(m->n_leaves <= most);
}

void manifest_print(const Manifest *m, Buf *out)
{
    size_t start = out->len;
    buf_printf(out, "%sstep %" PRId64 "\nfile state.h5 %" PRIu64 "\n", first_line, m->step, m->file_bytes);
    for (size_t i = 0; i < m->n_tensors; i++) {
        const ManifestTensor *t = &m->tensors[i];
        buf_printf(out, "tensor %" PRIu64 " %" PRIu64 " %s %" PRId64 " %" PRId64 " %s\n", t->offset, t->bytes,
                   dtype_name(t->t), t->shape[0], t->shape[1], t->name);
    }
    for (size_t i = 0; i < m->n_leaves; i++) {
        const ManifestLeaf *leaf = &m->leaves[i];
        buf_printf(out, "leaf %" PRIu64 " %" PRIu64 " %016" PRIx64 "\n", leaf->offset, leaf->bytes, leaf->digest);
    }
    buf_printf(out, "end %016" PRIx64 "\n", hash64(out->data + start, out->len - start, 0));
}

// ---- digests ----------------------------------------------------------------------------------------------
// The leaves of a rank: those that begin in its 1/size of the file.
static void share_of(const Manifest *m, int rank, int size, size_t *from, size_t *to)
{
    uint64_t each = m->file_bytes / (uint64_t)size + 1, low = each * (uint64_t)rank, high = low + each;
    *from = *to = 0;
    while (*from < m->n_leaves && m->leaves[*from].offset < low) ++*from;
    for (*to = *from; *to < m->n_leaves && m->leaves[*to].offset < high;) ++*to;
}

static int open_whole(const Manifest *m, const char *file, int *fd)
{
    struct stat st;
    *fd = open(file, O_RDONLY | O_CLOEXEC);
    if (*fd < 0) return fail_errno(file, "cannot open");
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == m->file_bytes) return OK;
    close(*fd);
    *fd = -1;
    return fail(E_INPUT, file, NULL, "%lld bytes, its MANIFEST says %" PRIu64, (long long)st.st_size, m->file_bytes);
}

size_t manifest_leaf_at(const Manifest *m, uint64_t offset)
{
    size_t low = 0, high = m->n_leaves;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->leaves[middle].offset + m->leaves[middle].bytes <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int leaves_open(LeafReader *r, const Manifest *m, const char *file)
{
    *r = (LeafReader){.m = m, .file = file, .fd = -1};
    TRY(open_whole(m, file, &r->fd));
    r->digest = digest_open();
    r->piece = xmalloc(PIECE_BYTES);
    return OK;
}

void leaves_close(LeafReader *r)
{
    if (r->fd >= 0) close(r->fd);
    digest_close(r->digest);
    free(r->piece);
    *r = (LeafReader){.fd = -1};
}

static int read_at(const LeafReader *r, char *data, uint64_t bytes, uint64_t offset)
{
    while (bytes) {
        ssize_t n = pread(r->fd, data, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail_errno(r->file, "cannot read");
        if (n == 0) return fail(E_INPUT, r->file, NULL, "the file ends at byte %" PRIu64, offset);
        data += n;
        bytes -= (uint64_t)n;
        offset += (uint64_t)n;
    }
    return OK;
}

// In pieces that are still in the processor's cache when they are digested.
static int digest_leaf(LeafReader *r, size_t leaf, char *data, LeafSink *sink, void *ctx, uint64_t *digest)
{
    const ManifestLeaf *l = &r->m->leaves[leaf];
    int status = OK;
    for (uint64_t at = 0; at < l->bytes && status == OK; at += PIECE_BYTES) {
        const uint64_t n = MIN(l->bytes - at, (uint64_t)PIECE_BYTES);
        char *to = data ? data + at : r->piece;
        status = read_at(r, to, n, l->offset + at);
        if (status == OK) digest_add(r->digest, to, n);
        if (status == OK && sink) sink(ctx, to, n);
    }
    *digest = digest_take(r->digest);
    return status;
}

int leaves_read(LeafReader *r, size_t leaf, char *data)
{
    uint64_t digest;
    TRY(digest_leaf(r, leaf, data, NULL, NULL, &digest));
    return digest == r->m->leaves[leaf].digest ? OK : manifest_blame(r->m, r->file, leaf);
}

int leaves_stream(LeafReader *r, size_t leaf, LeafSink *sink, void *ctx)
{
    uint64_t digest;
    TRY(digest_leaf(r, leaf, NULL, sink, ctx, &digest));
    return digest == r->m->leaves[leaf].digest ? OK : manifest_blame(r->m, r->file, leaf);
}

void leaves_watch(LeafWatch *w, Manifest *m)
{
    *w = (LeafWatch){.m = m, .digest = digest_open(), .known = xcalloc(m->n_leaves + 1, 1), .at = UINT64_MAX};
}

void leaves_watch_end(LeafWatch *w)
{
    digest_close(w->digest);
    free(w->known);
    *w = (LeafWatch){0};
}

// Bytes that do not go on where the last ones ended: the first leaf that begins among them or behind them. *skip: how far they lie
// before it.
static void begin_run(LeafWatch *w, uint64_t offset, uint64_t *skip)
{
    (void)digest_take(w->digest);
    w->leaf = manifest_leaf_at(w->m, offset);
    if (w->leaf < w->m->n_leaves && w->m->leaves[w->leaf].offset < offset) w->leaf++;
    *skip = w->leaf < w->m->n_leaves ? w->m->leaves[w->leaf].offset - offset : UINT64_MAX;
}

void leaves_pass(LeafWatch *w, uint64_t offset, const void *data, uint64_t bytes)
{
    const char *at = data;
    const uint64_t end = offset + bytes;
    uint64_t skip = 0;
    if (offset != w->at) begin_run(w, offset, &skip);
    w->at = end;
    if (skip >= bytes) {
        w->at = UINT64_MAX; // no leaf has begun
        return;
    }
    for (offset += skip, at += skip; offset < end;) {
        const ManifestLeaf *l = &w->m->leaves[w->leaf];
        const uint64_t n = MIN(end, l->offset + l->bytes) - offset;
        digest_add(w->digest, at, n);
        offset += n;
        at += n;
        if (offset < l->offset + l->bytes) return;
        w->m->leaves[w->leaf].digest = digest_take(w->digest);
        w->known[w->leaf++] = 1;
    }
}

typedef void (*LeafFn)(void *ctx, size_t i, uint64_t digest);

static int each_digest(const Manifest *m, const char *file, int rank, int size, const uint8_t *known, LeafFn fn,
                       void *ctx)
{
    LeafReader r;
    int status = OK;
    size_t from, to;
    TRY(leaves_open(&r, m, file));
    share_of(m, rank, size, &from, &to);
    for (size_t i = from; i < to && status == OK; i++) {
        uint64_t digest;
        if (known && known[i]) continue;
        status = digest_leaf(&r, i, NULL, NULL, NULL, &digest);
        if (status == OK) fn(ctx, i, digest);
    }
    leaves_close(&r);
    return status;
}

static void store_digest(void *ctx, size_t i, uint64_t digest)
{
    ((Manifest *)ctx)->leaves[i].digest = digest;
}

int manifest_digest(Manifest *m, const char *file, int rank, int size, const uint8_t *known)
{
    return each_digest(m, file, rank, size, known, store_digest, m);
}

typedef struct Comparison {
    const Manifest *m;
    size_t *bad;
} Comparison;

static void compare_digest(void *ctx, size_t i, uint64_t digest)
{
    const Comparison *x = ctx;
    if (digest != x->m->leaves[i].digest && *x->bad == SIZE_MAX) *x->bad = i;
}

int manifest_compare(const Manifest *m, const char *file, int rank, int size, size_t *bad)
{
    *bad = SIZE_MAX;
    return each_digest(m, file, rank, size, NULL, compare_digest, &(Comparison){m, bad});
}

int manifest_blame(const Manifest *m, const char *file, size_t leaf)
{
    const ManifestLeaf *l = &m->leaves[leaf];
    const char *whose = l->tensor < 0 ? "its structure" : tmpf("tensor %s", m->tensors[l->tensor].name);
    return fail(E_INPUT, file, NULL, "damaged: %s (bytes %" PRIu64 " to %" PRIu64 " differ from their digest)", whose,
                l->offset, l->offset + l->bytes - 1);
}

const ManifestTensor *manifest_find(const Manifest *m, const char *name)
{
    for (size_t i = 0; i < m->n_tensors; i++)
        if (streq(m->tensors[i].name, name)) return &m->tensors[i];
    return NULL;
}

// ---- reading ----------------------------------------------------------------------------------------------
// A position in the text, and what a message needs to name it.
typedef struct Cursor {
    const char *place;
    char *at, *end;
    int line;
} Cursor;

static int bad(const Cursor *c, const char *what)
{
    return fail(E_INPUT, tmpf("%s:%d", c->place, c->line), NULL, "%s", what);
}

static bool take(Cursor *c, const char *literal)
{
    size_t n = strlen(literal);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, literal, n) != 0) return false;
    c->at += n;
    if (n && literal[n - 1] == '\n') c->line++;
    return true;
}

// A decimal number as it is printed: no sign, no leading zero, below INT64_MAX.
static int take_number(Cursor *c, uint64_t *out)
{
    const char *start = c->at;
    uint64_t v = 0;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9' && v <= (INT64_MAX - 9) / 10)
        v = v * 10 + (uint64_t)(*c->at++ - '0');
    bool more = c->at < c->end && *c->at >= '0' && *c->at <= '9';
    if (c->at == start || more || (*start == '0' && c->at - start > 1)) return bad(c, "a number was expected here");
    *out = v;
    return OK;
}

static int take_digest(Cursor *c, uint64_t *out)
{
    uint64_t v = 0;
    if (c->end - c->at < 16) return bad(c, "a digest was expected here");
    for (int i = 0; i < 16; i++) {
        char h = *c->at++;
        int digit = h >= '0' && h <= '9' ? h - '0' : h >= 'a' && h <= 'f' ? h - 'a' + 10 : -1;
        if (digit < 0) return bad(c, "a digest was expected here");
        v = v << 4 | (uint64_t)digit;
    }
    *out = v;
    return OK;
}

static int take_space(Cursor *c)
{
    return take(c, " ") ? OK : bad(c, "a space was expected here");
}
static int take_newline(Cursor *c)
{
    return take(c, "\n") ? OK : bad(c, "the line should end here");
}

static int take_dtype(Cursor *c, DType *out)
{
    for (int t = 0; t < DT_COUNT; t++) {
        size_t n = strlen(dtype_name((DType)t));
        if ((size_t)(c->end - c->at) <= n || memcmp(c->at, dtype_name((DType)t), n) != 0 || c->at[n] != ' ') continue;
        c->at += n;
        *out = (DType)t;
        return OK;
    }
    return bad(c, "not a known type");
}

// The rest of the line; the newline becomes the string's end.
static int take_name(Cursor *c, const char **out)
{
    char *newline = memchr(c->at, '\n', (size_t)(c->end - c->at));
    if (!newline || newline == c->at || newline - c->at >= MANIFEST_NAME_BYTES)
        return bad(c, "a name was expected here");
    for (const char *p = c->at; p < newline; p++)
        if ((unsigned char)*p < 0x20) return bad(c, "a name holds a control character");
    *newline = 0;
    *out = c->at;
    c->at = newline + 1;
    c->line++;
    return OK;
}

static int take_tensor(Cursor *c, Manifest *m)
{
    ManifestTensor *t = &m->tensors[m->n_tensors];
    uint64_t rows, cols;
    size_t bytes;
    TRY(take_number(c, &t->offset));
    TRY(take_space(c));
    TRY(take_number(c, &t->bytes));
    TRY(take_space(c));
    TRY(take_dtype(c, &t->t));
    TRY(take_space(c));
    TRY(take_number(c, &rows));
    TRY(take_space(c));
    TRY(take_number(c, &cols));
    TRY(take_space(c));
    if (!mul_ok(rows, cols, &bytes) || !mul_ok(bytes, dtype_size(t->t), &bytes) || bytes != t->bytes || !bytes)
        return bad(c, "a tensor's shape does not make its size");
    uint64_t before = m->n_tensors ? t[-1].offset + t[-1].bytes : 0;
    if (t->offset < before || t->offset > m->file_bytes || t->bytes > m->file_bytes - t->offset)
        return bad(c, "a tensor lies outside of the file, or over another one");
    t->shape[0] = (int64_t)rows;
    t->shape[1] = (int64_t)cols;
    TRY(take_name(c, &t->name));
    m->n_tensors++;
    return OK;
}

// *tensor: the first whose end is not behind us yet; leaves come in the file's order, so it only moves on.
static int take_leaf(Cursor *c, Manifest *m, size_t *tensor)
{
    ManifestLeaf *leaf = &m->leaves[m->n_leaves];
    TRY(take_number(c, &leaf->offset));
    TRY(take_space(c));
    TRY(take_number(c, &leaf->bytes));
    TRY(take_space(c));
    TRY(take_digest(c, &leaf->digest));
    uint64_t at = m->n_leaves ? leaf[-1].offset + leaf[-1].bytes : 0;
    if (leaf->offset != at || !leaf->bytes || leaf->bytes > MANIFEST_LEAF_BYTES || leaf->bytes > m->file_bytes - at)
        return bad(c, "a leaf does not go on where the last one ended");
    while (*tensor < m->n_tensors && m->tensors[*tensor].offset + m->tensors[*tensor].bytes <= at) ++*tensor;
    leaf->tensor = -1;
    if (*tensor < m->n_tensors) {
        const ManifestTensor *t = &m->tensors[*tensor];
        uint64_t edge = t->offset > at ? t->offset : t->offset + t->bytes;
        if (leaf->bytes > edge - at) return bad(c, "a leaf crosses a tensor's edge");
        if (t->offset <= at) leaf->tensor = (int)*tensor;
    }
    m->n_leaves++;
    return take_newline(c);
}

// The last line, by its fixed length, against the text before it.
static int check_end(Cursor *c)
{
    enum { END_BYTES = 4 + 16 + 1 };
    if (c->end - c->at < END_BYTES) return bad(c, "too short");
    Cursor last = {.place = c->place, .at = c->end - END_BYTES, .end = c->end};
    uint64_t digest = 0;
    if (!take(&last, "end ")) return bad(&last, "cut short: the last line is missing");
    TRY(take_digest(&last, &digest));
    TRY(take_newline(&last));
    c->end -= END_BYTES;
    if (hash64(c->at, (size_t)(c->end - c->at), 0) != digest)
        return bad(&last, "damaged: the text differs from its digest");
    return OK;
}

static int parse(Manifest *m, Cursor *c)
{
    uint64_t step, tensor_lines = 0, lines = 0;
    TRY(check_end(c));
    for (const char *p = c->at; p < c->end && (p = memchr(p, '\n', (size_t)(c->end - p))); p++) {
        lines++;
        tensor_lines += c->end - p > 7 && memcmp(p + 1, "tensor ", 7) == 0;
    }
    m->tensors = xcalloc(tensor_lines + 1, sizeof *m->tensors);
    m->leaves = xcalloc(lines + 1, sizeof *m->leaves);
    if (!take(c, first_line)) return bad(c, "not a MANIFEST of version 1");
    if (!take(c, "step ")) return bad(c, "`step` was expected here");
    TRY(take_number(c, &step));
    TRY(take_newline(c));
    m->step = (int64_t)step;
    if (!take(c, "file state.h5 ")) return bad(c, "`file state.h5` was expected here");
    TRY(take_number(c, &m->file_bytes));
    TRY(take_newline(c));
    while (take(c, "tensor ")) TRY(take_tensor(c, m));
    for (size_t tensor = 0; take(c, "leaf ");) TRY(take_leaf(c, m, &tensor));
    if (c->at != c->end) return bad(c, "`tensor` or `leaf` was expected here");
    uint64_t covered = m->n_leaves ? m->leaves[m->n_leaves - 1].offset + m->leaves[m->n_leaves - 1].bytes : 0;
    return covered == m->file_bytes ? OK : bad(c, "the leaves do not cover the file");
}

int manifest_parse(Manifest *m, const char *place, char *text, size_t bytes)
{
    memset(m, 0, sizeof *m);
    m->text = text;
    Cursor c = {.place = place, .at = text, .end = text + bytes, .line = 1};
    int status = parse(m, &c);
    if (status < 0) manifest_free(m);
    return status;
}

int manifest_read(Manifest *m, const char *path)
{
    char *text;
    size_t bytes;
    memset(m, 0, sizeof *m);
    TRY(file_read(path, MANIFEST_LIMIT_BYTES, &text, &bytes));
    return manifest_parse(m, path, text, bytes);
}
