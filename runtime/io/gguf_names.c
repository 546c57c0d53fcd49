// gguf_names: from llama.cpp's tensor names and layouts back to Hugging Face's. What llama.cpp's converter
// (convert_hf_to_gguf.py) does to a family stands in the tables; a family that is not in them keeps its GGUF names, so that it
// can be listed but not be taken for a model whose layout is known.
#include "io/gguf_impl.h"
#include <stdlib.h>
#include <string.h>

enum {             // kinds of layer, by the norms and fused matrices they have
    PRE_NORM = 1,  // Llama and most others: a norm before attention and one before the MLP
    SANDWICH = 2,  // Gemma 2, 3: norms before and after both
    POST_NORM = 4, // OLMo 2: norms after both
    FUSED = 8,     // Phi-3: PRE_NORM with q, k, v in one matrix, and gate and up in one
    ALL = 15,
};

typedef struct GgufFamily {
    const char *arch; // general.architecture
    unsigned layer;
    bool interleaved; // rows of q and k are stored in the order of rotary pairs (x0, y0, x1, y1, ...)
    float norm_shift; // added to norm weights by the converter
} GgufFamily;

static const GgufFamily families[] = {
    {"llama", PRE_NORM, true, 0},   {"mistral3", PRE_NORM, true, 0}, {"smollm3", PRE_NORM, true, 0},
    {"granite", PRE_NORM, true, 0}, {"qwen2", PRE_NORM, false, 0},   {"qwen3", PRE_NORM, false, 0},
    {"gemma", PRE_NORM, false, 1},  {"gemma2", SANDWICH, false, 1},  {"gemma3", SANDWICH, false, 1},
    {"olmo2", POST_NORM, false, 0}, {"phi3", FUSED, false, 0},
};

enum { NORM = 1, ROTARY_Q = 2, ROTARY_K = 4 };

typedef struct NameRow {
    const char *gguf, *hf; // without layer prefix and ".weight" or ".bias"
    unsigned layers;       // kinds of layer that have it
    int flags;
} NameRow;

static const NameRow top_names[] = {
    {"token_embd", "model.embed_tokens", ALL, 0},
    {"output_norm", "model.norm", ALL, NORM},
    {"output", "lm_head", ALL, 0},
};

static const NameRow layer_names[] = {
    {"attn_q", "self_attn.q_proj", ALL, ROTARY_Q},
    {"attn_k", "self_attn.k_proj", ALL, ROTARY_K},
    {"attn_v", "self_attn.v_proj", ALL, 0},
    {"attn_qkv", "self_attn.qkv_proj", FUSED, 0},
    {"attn_output", "self_attn.o_proj", ALL, 0},
    {"attn_q_norm", "self_attn.q_norm", ALL, NORM},
    {"attn_k_norm", "self_attn.k_norm", ALL, NORM},
    {"attn_norm", "input_layernorm", PRE_NORM | SANDWICH | FUSED, NORM},
    {"post_attention_norm", "post_attention_layernorm", SANDWICH | POST_NORM, NORM},
    {"ffn_norm", "post_attention_layernorm", PRE_NORM | FUSED, NORM},
    {"ffn_norm", "pre_feedforward_layernorm", SANDWICH, NORM},
    {"post_ffw_norm", "post_feedforward_layernorm", SANDWICH | POST_NORM, NORM},
    {"ffn_gate", "mlp.gate_proj", ALL, 0},
    {"ffn_up", "mlp.up_proj", PRE_NORM | SANDWICH | POST_NORM, 0},
    {"ffn_up", "mlp.gate_up_proj", FUSED, 0},
    {"ffn_down", "mlp.down_proj", ALL, 0},
};

static const NameRow *find_row(const NameRow *rows, size_t n, const char *stem, size_t bytes, unsigned layer)
{
    for (size_t i = 0; i < n; i++)
        if ((rows[i].layers & layer) && strlen(rows[i].gguf) == bytes && !memcmp(rows[i].gguf, stem, bytes))
            return &rows[i];
    return NULL;
}

// "blk.12.attn_q.weight" -> layer "12", stem "attn_q", tail ".weight"; layer is empty outside layers. False: of another form.
typedef struct Parts {
    const char *layer, *stem, *tail;
    int layer_bytes, stem_bytes;
} Parts;

static bool split_name(const char *name, Parts *p)
{
    *p = (Parts){.layer = name, .stem = name, .tail = strrchr(name, '.')};
    if (!p->tail || !(streq(p->tail, ".weight") || streq(p->tail, ".bias"))) return false;
    if (!strncmp(name, "blk.", 4)) {
        p->layer = name + 4;
        p->layer_bytes = (int)strspn(p->layer, "0123456789");
        bool canonical = p->layer_bytes == 1 || (p->layer_bytes > 1 && p->layer[0] != '0');
        if (!canonical || p->layer[p->layer_bytes] != '.') return false;
        p->stem = p->layer + p->layer_bytes + 1;
    }
    p->stem_bytes = (int)(p->tail - p->stem);
    return p->stem_bytes > 0;
}

static int undo_interleaving(const Weights *w, Entry *e, uint64_t heads)
{
    uint64_t rows = e->info.ndim ? (uint64_t)e->info.shape[0] : 1;
    if (heads == 0 || rows % heads || rows / heads % 2)
        return fail(
            E_INPUT, weights_place(w, 0, e->info.name), "head_count and head_count_kv say how q and k are divided",
            "%llu rows cannot be %llu heads of rotary pairs", (unsigned long long)rows, (unsigned long long)heads);
    e->rope_heads = heads;
    return OK;
}

static int map_tensor(const Weights *w, Entry *e, const GgufFamily *f, uint64_t heads, uint64_t kv_heads)
{
    Parts p;
    if (!split_name(e->info.name, &p)) return OK;
    bool top = p.layer_bytes == 0;
    const NameRow *row = top ? find_row(top_names, COUNT_OF(top_names), p.stem, (size_t)p.stem_bytes, f->layer)
                             : find_row(layer_names, COUNT_OF(layer_names), p.stem, (size_t)p.stem_bytes, f->layer);
    if (!row) return OK; // rope_freqs.weight and kin keep their names
    if (row->flags & NORM) e->shift = -f->norm_shift;
    if (f->interleaved && row->flags & (ROTARY_Q | ROTARY_K))
        TRY(undo_interleaving(w, e, row->flags & ROTARY_Q ? heads : kv_heads));
    char *hf = top ? xasprintf("%s%s", row->hf, p.tail)
                   : xasprintf("model.layers.%.*s.%s%s", p.layer_bytes, p.layer, row->hf, p.tail);
    free((char *)e->info.name);
    e->info.name = hf;
    return OK;
}

int gguf_map_names(Weights *w)
{
    char *arch = NULL;
    const GgufFamily *f = NULL;
    uint64_t heads = 0, kv_heads;
    TRY(gguf_string(w, "general.architecture", &arch));
    for (size_t i = 0; arch && i < COUNT_OF(families); i++)
        if (streq(families[i].arch, arch)) f = &families[i];
    free(arch);
    if (!f) return OK;
    if (f->interleaved) TRY(gguf_uint(w, tmpf("%s.attention.head_count", f->arch), &heads));
    kv_heads = heads;
    if (f->interleaved) TRY(gguf_uint(w, tmpf("%s.attention.head_count_kv", f->arch), &kv_heads));
    for (int i = 0; i < w->n; i++) TRY(map_tensor(w, &w->entry[i], f, heads, kv_heads));
    return OK;
}
