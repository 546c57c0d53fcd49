// weights: opens model files of any container, finds tensors by name, and reads their rows as f32 or bf16.
// Containers: safetensors.c, gguf.c. Storage types: dequant.c.
//
// After weights_open nothing in a Weights changes, and reading is pread into buffers on the caller's stack: several threads may
// call weights_read on one Weights at once. A fault lands in the calling thread's error record.
#include "io/weights_impl.h"
#include <stdlib.h>
#include <string.h>

// ---- what containers call -------------------------------------------------------------------------------------------
const char *weights_place(const Weights *w, int source, const char *tensor)
{
    return tmpf("%s: tensor %s", w->source[source].path, tensor);
}

int weights_add_source(Weights *w, const char *path)
{
    w->source = xrealloc(w->source, (size_t)(w->n_sources + 1) * sizeof *w->source);
    TRY(source_open(&w->source[w->n_sources], path));
    return w->n_sources++;
}

// elements, row_elements and info.bytes from type and shape
static int measure(const Weights *w, Entry *e)
{
    const char *place = weights_place(w, e->source, e->info.name);
    uint64_t n = 1, row = 1;
    for (int d = 0; d < e->info.ndim; d++) {
        uint64_t extent = (uint64_t)e->info.shape[d];
        if (!mul_ok(n, extent, &n) || (d > 0 && !mul_ok(row, extent, &row)) || n > INT64_MAX)
            return fail(E_INPUT, place, NULL, "the product of its dimensions overflows");
    }
    uint64_t last = e->info.ndim ? (uint64_t)e->info.shape[e->info.ndim - 1] : 1;
    if (last % e->type->block)
        return fail(E_INPUT, place, NULL, "rows of %llu elements are no whole number of %s blocks of %u",
                    (unsigned long long)last, e->type->name, e->type->block);
    if (!stored_bytes(e->type, n, &e->info.bytes)) return fail(E_INPUT, place, NULL, "its size in bytes overflows");
    e->elements = n;
    e->row_elements = row;
    return OK;
}

int weights_add(Weights *w, const char *name, size_t name_bytes, Entry e)
{
    const Source *s = &w->source[e.source];
    if (!name_ok(name, name_bytes, WEIGHTS_MAX_NAME))
        return fail(E_INPUT, s->path, NULL, "the name of tensor %d is not 1 to %d bytes of printable UTF-8", w->n,
                    WEIGHTS_MAX_NAME);
    if (w->n == WEIGHTS_MAX_TENSORS) return fail(E_INPUT, s->path, NULL, "more than %d tensors", WEIGHTS_MAX_TENSORS);
    if (w->n == w->cap) {
        w->cap = MAX(64, w->cap * 2);
        w->entry = xrealloc(w->entry, (size_t)w->cap * sizeof *w->entry);
    }
    e.info.name = xstrndup(name, name_bytes);
    e.info.stored = e.type->name;
    w->entry[w->n++] = e; // from here on weights_close frees the name
    Entry *added = &w->entry[w->n - 1];
    TRY(measure(w, added));
    uint64_t end;
    if (!add_ok(added->offset, added->info.bytes, &end) || end > s->bytes)
        return fail(E_INPUT, weights_place(w, e.source, added->info.name),
                    "the file is cut short or damaged: fetch or copy it again",
                    "needs %llu bytes from byte %llu on, the file ends at %llu", (unsigned long long)added->info.bytes,
                    (unsigned long long)added->offset, (unsigned long long)s->bytes);
    return OK;
}

// ---- opening --------------------------------------------------------------------------------------------------------
static const char convert_hint[] =
    "convert it to safetensors: python -c \"from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained('IN').save_pretrained('OUT')\"";

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), t = strlen(tail);
    return n >= t && streq(s + n - t, tail);
}

static int open_file(Weights *w, const char *path)
{
    TRY(weights_add_source(w, path));
    uint8_t head[9] = {0};
    TRY(source_read(&w->source[0], 0, head, (size_t)MIN(sizeof head, w->source[0].bytes)));
    if (!memcmp(head, "GGUF", 4)) return gguf_open(w);
    if (ends_with(path, ".safetensors") || head[8] == '{') return safetensors_open_file(w); // header after its length
    bool pickle = !memcmp(head, "PK\3\4", 4) || head[0] == 0x80; // torch.save: a zip archive, formerly a bare pickle
    if (pickle) return fail(E_INPUT, path, convert_hint, "a PyTorch pickle, which could run code and is not read");
    return fail(E_INPUT, path, "a model is a Hugging Face directory, a .safetensors or a .gguf file",
                "neither safetensors nor GGUF");
}

static bool holds(const char *dir, const char *file)
{
    char *path = xasprintf("%s/%s", dir, file);
    bool there = path_exists(path);
    free(path);
    return there;
}

// Directories that people give for a model and that are none, by a file they hold.
static const struct {
    const char *file, *what, *hint;
} no_models[] = {
    {"pytorch_model.bin", "holds only PyTorch pickles, which could run code and are not read", convert_hint},
    {"pytorch_model.bin.index.json", "holds only PyTorch pickles, which could run code and are not read", convert_hint},
    {"adapter_config.json", "a PEFT adapter, not a model",
     "give the model it was made for as model, and this directory as adapter"},
};

static int open_dir(Weights *w, const char *dir)
{
    if (holds(dir, "model.safetensors") || holds(dir, "model.safetensors.index.json"))
        return safetensors_open_dir(w, dir);
    for (size_t i = 0; i < COUNT_OF(no_models); i++)
        if (holds(dir, no_models[i].file)) return fail(E_INPUT, dir, no_models[i].hint, "%s", no_models[i].what);
    return fail(E_INPUT, dir,
                "a model directory holds model.safetensors, or model.safetensors.index.json and its shards; "
                "a GGUF file is given by its own path",
                "no model.safetensors in it");
}

bool weights_on_paper(const char *path)
{
    static const char *const kinds[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                        "pytorch_model.bin.index.json"};
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (holds(path, kinds[i])) return false;
    return holds(path, "config.json");
}

static int index_names(Weights *w)
{
    NameRef *ref = xmalloc((size_t)MAX(w->n, 1) * sizeof *ref);
    for (int i = 0; i < w->n; i++) ref[i] = (NameRef){w->entry[i].info.name, i};
    const char *twice = names_sort(&w->by_name, ref, w->n);
    if (!twice) return OK;
    return fail(E_INPUT, weights_place(w, w->entry[names_find(&w->by_name, twice)].source, twice), NULL,
                "there are two tensors of this name");
}

int weights_open(Weights **out, const char *path)
{
    Weights *w = xcalloc(1, sizeof *w);
    int status = OK;
    TRY_DONE(path_is_dir(path) ? open_dir(w, path) : open_file(w, path));
    TRY_DONE(index_names(w));
    *out = w;
    return OK;
done:
    weights_close(w);
    return status;
}

void weights_close(Weights *w)
{
    if (!w) return;
    if (w->meta) w->container->meta_free(w->meta);
    for (int i = 0; i < w->n; i++) free((char *)w->entry[i].info.name);
    for (int i = 0; i < w->n_sources; i++) source_close(&w->source[i]);
    free(w->by_name.ref);
    free(w->entry);
    free(w->source);
    free(w);
}

// ---- looking --------------------------------------------------------------------------------------------------------
int weights_count(const Weights *w)
{
    return w->n;
}
int weights_find(const Weights *w, const char *hf_name)
{
    return names_find(&w->by_name, hf_name);
}
bool weights_is_gguf(const Weights *w)
{
    return w->container->is_gguf;
}
char *weights_meta_json(const Weights *w, const char *key)
{
    return w->container->meta_json(w, key);
}

const TensorInfo *weights_info(const Weights *w, int i)
{
    ASSERT(i >= 0 && i < w->n);
    return &w->entry[i].info;
}

uint64_t weights_total_bytes(const Weights *w)
{
    uint64_t total = 0;
    for (int i = 0; i < w->n; i++) total += w->entry[i].info.bytes;
    return total;
}

// ---- reading --------------------------------------------------------------------------------------------------------
enum {
    STAGE_BYTES = 1 << 16,
    STAGE_ELEMENTS = 2048
}; // read at once; decoded at once, so that it stays in the L1 cache

static void emit(const float *src, size_t n, float shift, DType t, char *dst)
{
    if (t == DT_F32) {
        float *to = (float *)(void *)dst;
        if (shift == 0)
            memcpy(to, src, n * sizeof *to);
        else
            for (size_t i = 0; i < n; i++) to[i] = src[i] + shift;
    } else {
        bf16_t *to = (bf16_t *)(void *)dst;
        if (shift == 0)
            for (size_t i = 0; i < n; i++) to[i] = f32_to_bf16(src[i]);
        else
            for (size_t i = 0; i < n; i++) to[i] = f32_to_bf16(src[i] + shift);
    }
}

// Decodes `blocks` blocks at raw and stores those of their elements that lie in [skip, skip+n).
static void decode(const Entry *e, const uint8_t *raw, size_t blocks, size_t skip, size_t n, DType t, char *dst)
{
    float stage[STAGE_ELEMENTS];
    size_t at_once = STAGE_ELEMENTS / e->type->block;
    while (blocks) {
        size_t k = MIN(blocks, at_once), have = k * e->type->block - skip, take = MIN(have, n);
        e->type->decode(raw, stage, k);
        emit(stage + skip, take, e->shift, t, dst);
        raw += k * e->type->block_bytes;
        dst += take * dtype_size(t);
        n -= take;
        blocks -= k;
        skip = 0;
    }
}

// n elements from `first` on. Only vectors of a block type can start or end inside a block.
static int read_span(const Weights *w, const Entry *e, uint64_t first, uint64_t n, DType t, char *dst)
{
    const Source *s = &w->source[e->source];
    bool same =
        e->type->block == 1 && e->shift == 0 && e->type == stored_type_safetensors(t == DT_F32 ? "F32" : "BF16");
    if (same) return source_read(s, e->offset + first * dtype_size(t), dst, n * dtype_size(t));
    uint8_t raw[STAGE_BYTES];
    const size_t block = e->type->block, block_bytes = e->type->block_bytes, at_once = sizeof raw / block_bytes;
    uint64_t next = first / block;
    size_t skip = first % block;
    while (n) {
        size_t blocks = (size_t)MIN((skip + n + block - 1) / block, at_once),
               take = (size_t)MIN(blocks * block - skip, n);
        TRY(source_read(s, e->offset + next * block_bytes, raw, blocks * block_bytes));
        decode(e, raw, blocks, skip, take, t, dst);
        next += blocks;
        dst += take * dtype_size(t);
        n -= take;
        skip = 0;
    }
    return OK;
}

// Where row r of the Hugging Face order (x of all pairs of a head, then y) is stored when pairs lie together (x, y, x, y, ...).
static uint64_t interleaved_row(const Entry *e, uint64_t r)
{
    uint64_t head = (uint64_t)e->info.shape[0] / e->rope_heads, h = r / head, i = r % head;
    return h * head + i % (head / 2) * 2 + i / (head / 2);
}

static void check_rows(const Entry *e, int64_t row0, int64_t rows)
{
    const int64_t all = e->info.ndim ? e->info.shape[0] : 1;
    ASSERT(row0 >= 0 && rows >= 0 && row0 <= all && rows <= all - row0);
}

int weights_read(Weights *w, int i, int64_t row0, int64_t rows, DType dst_t, void *dst)
{
    ASSERT(i >= 0 && i < w->n && (dst_t == DT_F32 || dst_t == DT_BF16));
    const Entry *e = &w->entry[i];
    check_rows(e, row0, rows);
    if (!e->type->decode)
        return fail(E_INPUT, weights_place(w, e->source, e->info.name),
                    "weights may be F32, F16, BF16 or F64; in GGUF also Q4_0 to Q8_0 and Q2_K to Q6_K",
                    "stored as %s, which cannot be read as weights", e->type->name);
    if (e->rope_heads == 0)
        return read_span(w, e, (uint64_t)row0 * e->row_elements, (uint64_t)rows * e->row_elements, dst_t, dst);
    for (int64_t r = 0; r < rows; r++) {
        char *to = (char *)dst + (uint64_t)r * e->row_elements * dtype_size(dst_t);
        TRY(read_span(w, e, interleaved_row(e, (uint64_t)(row0 + r)) * e->row_elements, e->row_elements, dst_t, to));
    }
    return OK;
}

bool weights_blocks(const Weights *w, int i, Quant *format)
{
    const Entry *e = &w->entry[i];
    if (!e->type->quant || e->shift != 0 || e->row_elements % e->type->block) return false;
    *format = (Quant)(e->type->quant - quant_formats);
    return true;
}

int weights_read_blocks(Weights *w, int i, int64_t row0, int64_t rows, void *dst)
{
    const Entry *e = &w->entry[i];
    const Source *s = &w->source[e->source];
    const uint64_t bytes = e->row_elements / e->type->block * e->type->block_bytes;
    check_rows(e, row0, rows);
    if (e->rope_heads == 0) return source_read(s, e->offset + (uint64_t)row0 * bytes, dst, (uint64_t)rows * bytes);
    for (int64_t r = 0; r < rows; r++) {
        const uint64_t from = interleaved_row(e, (uint64_t)(row0 + r));
        TRY(source_read(s, e->offset + from * bytes, (char *)dst + (uint64_t)r * bytes, bytes));
    }
    return OK;
}
