// checkpoint_read: checkpoints for one process alone, with neither MPI nor HDF5: datasets are contiguous, and the MANIFEST tells where
// their bytes lie. Nothing is handed out as good before the digest of its leaf has been compared, in the same reading: HDF5 is not made
// for damaged or hostile files. Any thread may read while another one saves.
#include "checkpoint_impl.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int checkpoint_verify(const char *dir)
{
    char *path = xasprintf("%s/MANIFEST", dir), *file = xasprintf("%s/state.h5", dir);
    Manifest m = {0};
    size_t bad = SIZE_MAX;
    int status = manifest_read(&m, path);
    if (status == OK) status = manifest_compare(&m, file, 0, 1, &bad);
    if (status == OK && bad != SIZE_MAX) status = manifest_blame(&m, file, bad);
    manifest_free(&m);
    free(path);
    free(file);
    return status;
}

int checkpoint_list(const char *dir, int (*fn)(void *ctx, const CkptTensor *t), void *ctx)
{
    char *path = xasprintf("%s/MANIFEST", dir);
    Manifest m = {0};
    int status = manifest_read(&m, path);
    for (size_t i = 0; i < m.n_tensors && status == OK; i++) {
        const ManifestTensor *t = &m.tensors[i];
        if (streq(t->name, MANIFEST_META)) continue;
        status = fn(ctx, &(CkptTensor){.name = t->name, .t = t->t, .shape = {t->shape[0], t->shape[1]}});
    }
    manifest_free(&m);
    free(path);
    return status;
}

// ---- reader -----------------------------------------------------------------------------------------------
struct CkptReader {
    char *dir, *file;
    Manifest m;
    bool borrows; // m, another reader's
    LeafReader leaves;
    char *leaf;    // the last one of which a part was wanted; NULL until then
    size_t number; // and which it is; SIZE_MAX: none
};

static CkptReader *new_reader(const char *dir)
{
    CkptReader *r = xcalloc(1, sizeof *r);
    r->leaves.fd = -1;
    r->number = SIZE_MAX;
    r->dir = xstrdup(dir);
    r->file = xasprintf("%s/state.h5", dir);
    return r;
}

static int open_leaves(CkptReader *r, CkptReader **out, int status)
{
    if (status == OK) status = leaves_open(&r->leaves, &r->m, r->file);
    if (status < 0) checkpoint_close(r);
    *out = status == OK ? r : NULL;
    return status;
}

int ckpt_reader_open(CkptReader **out, const char *dir, char *text, size_t bytes)
{
    CkptReader *r = new_reader(dir);
    char *path = xasprintf("%s/MANIFEST", dir);
    int status = open_leaves(r, out, manifest_parse(&r->m, path, text, bytes));
    free(path);
    return status;
}

int ckpt_reader_again(CkptReader **out, const CkptReader *other)
{
    CkptReader *r = new_reader(other->dir);
    r->m = other->m;
    r->borrows = true;
    return open_leaves(r, out, OK);
}

int checkpoint_open(CkptReader **out, const char *dir)
{
    char *text, *path = xasprintf("%s/MANIFEST", dir);
    size_t bytes;
    *out = NULL;
    int status = file_read(path, MANIFEST_LIMIT_BYTES, &text, &bytes);
    free(path);
    return status < 0 ? status : ckpt_reader_open(out, dir, text, bytes);
}

void checkpoint_close(CkptReader *r)
{
    if (!r) return;
    leaves_close(&r->leaves);
    if (!r->borrows) manifest_free(&r->m);
    free(r->leaf);
    free(r->file);
    free(r->dir);
    free(r);
}

const Manifest *ckpt_reader_manifest(const CkptReader *r)
{
    return &r->m;
}

int ckpt_reader_structure(CkptReader *r)
{
    int status = OK;
    for (size_t i = 0; i < r->m.n_leaves && status == OK; i++)
        if (r->m.leaves[i].tensor < 0) status = leaves_read(&r->leaves, i, NULL);
    return status;
}

int checkpoint_find_tensor(CkptReader *r, const char *name, CkptTensor *out)
{
    const ManifestTensor *t = manifest_find(&r->m, name);
    if (!t || streq(name, MANIFEST_META)) return 0;
    *out = (CkptTensor){.name = t->name, .t = t->t, .shape = {t->shape[0], t->shape[1]}};
    return 1;
}

static int take_leaf(CkptReader *r, size_t leaf)
{
    if (r->number == leaf) return OK;
    if (!r->leaf) r->leaf = xmalloc(MANIFEST_LEAF_BYTES);
    r->number = SIZE_MAX;
    TRY(leaves_read(&r->leaves, leaf, r->leaf));
    r->number = leaf;
    return OK;
}

// Bytes [offset, offset + bytes) of the file. Leaves that are wanted whole are read into their place.
static int read_range(CkptReader *r, uint64_t offset, uint64_t bytes, char *out)
{
    for (size_t leaf = manifest_leaf_at(&r->m, offset); bytes; leaf++) {
        const ManifestLeaf *l = &r->m.leaves[leaf];
        uint64_t skip = offset - l->offset, n = MIN(bytes, l->bytes - skip);
        if (n == l->bytes) {
            TRY(leaves_read(&r->leaves, leaf, out));
        } else {
            TRY(take_leaf(r, leaf));
            memcpy(out, r->leaf + skip, n);
        }
        out += n;
        offset += n;
        bytes -= n;
    }
    return OK;
}

// The same bytes, to a sink.
static int stream_range(CkptReader *r, uint64_t offset, uint64_t bytes, LeafSink *sink, void *ctx)
{
    for (size_t leaf = manifest_leaf_at(&r->m, offset); bytes; leaf++) {
        const ManifestLeaf *l = &r->m.leaves[leaf];
        uint64_t skip = offset - l->offset, n = MIN(bytes, l->bytes - skip);
        if (n == l->bytes) {
            TRY(leaves_stream(&r->leaves, leaf, sink, ctx));
        } else {
            TRY(take_leaf(r, leaf));
            sink(ctx, r->leaf + skip, n);
        }
        offset += n;
        bytes -= n;
    }
    return OK;
}

int ckpt_reader_fits(const CkptReader *r, const CkptTensor *t)
{
    const ManifestTensor *stored = manifest_find(&r->m, t->name);
    if (!stored)
        return fail(E_INPUT, r->dir, "was it saved by a run with another `method`?",
                    "there is no tensor %s in this checkpoint", t->name);
    if (stored->t != t->t)
        return fail(E_INPUT, r->dir, NULL, "tensor %s is of type %s, not %s", t->name, dtype_name(stored->t),
                    dtype_name(t->t));
    if (stored->shape[0] == t->shape[0] && stored->shape[1] == t->shape[1]) return OK;
    return fail(E_INPUT, r->dir, "was it saved by a run of another model or adapter rank?",
                "tensor %s has shape (%" PRId64 ", %" PRId64 "), here it must be (%" PRId64 ", %" PRId64 ")", t->name,
                stored->shape[0], stored->shape[1], t->shape[0], t->shape[1]);
}

void ckpt_check_part(const CkptTensor *t)
{
    ASSERT(t->shape[0] > 0 && t->shape[1] > 0 && t->rows >= 0 && strlen(t->name) < MANIFEST_NAME_BYTES);
    if (!t->rows) return;
    ASSERT(t->data && t->row0 >= 0 && t->row0 + t->rows <= t->shape[0]);
    ASSERT(t->cols > 0 && t->col0 >= 0 && t->col0 + t->cols <= t->shape[1]);
}

int checkpoint_read(CkptReader *r, const CkptTensor *t)
{
    TRY(ckpt_reader_fits(r, t));
    ckpt_check_part(t);
    if (!t->rows) return OK;
    const ManifestTensor *stored = manifest_find(&r->m, t->name);
    const uint64_t size = dtype_size(t->t), row = (uint64_t)t->shape[1] * size, width = (uint64_t)t->cols * size;
    const uint64_t start = stored->offset + (uint64_t)t->row0 * row + (uint64_t)t->col0 * size;
    if (width == row) return read_range(r, start, (uint64_t)t->rows * row, t->data);
    for (uint64_t i = 0; i < (uint64_t)t->rows; i++)
        TRY(read_range(r, start + i * row, width, (char *)t->data + i * width));
    return OK;
}

int ckpt_reader_stream(CkptReader *r, const CkptTensor *rows, LeafSink *sink, void *ctx)
{
    TRY(ckpt_reader_fits(r, rows));
    const ManifestTensor *stored = manifest_find(&r->m, rows->name);
    const uint64_t row = (uint64_t)rows->shape[1] * dtype_size(rows->t);
    return stream_range(r, stored->offset + (uint64_t)rows->row0 * row, (uint64_t)rows->rows * row, sink, ctx);
}

int checkpoint_read_meta(CkptReader *r, CkptMeta *out)
{
    const ManifestTensor *t = manifest_find(&r->m, MANIFEST_META);
    *out = (CkptMeta){0};
    if (!t || t->t != DT_U8 || t->bytes > MANIFEST_LIMIT_BYTES)
        return fail(E_INPUT, r->dir, NULL, "the checkpoint has no description");
    char *text = xmalloc(t->bytes + 1);
    int status = read_range(r, t->offset, t->bytes, text);
    text[status == OK ? t->bytes : 0] = 0;
    *out = (CkptMeta){.step = r->m.step, .json = text};
    if (status < 0) checkpoint_meta_free(out);
    return status;
}

void checkpoint_meta_free(CkptMeta *m)
{
    if (m) free(m->json);
    if (m) m->json = NULL;
}
