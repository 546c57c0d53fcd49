// runtime/io: what is read from good files, against what the packages that define the formats read from them.
#include "io_test.h"
#include <pthread.h>

// ---- whole containers against their golden twin ---------------------------------------------------------------------
// Rows of tensor i read in slices of `step`; malloc'ed.
static void *read_tensor(Weights *w, int i, DType t, int64_t step)
{
    const TensorInfo *info = weights_info(w, i);
    int64_t rows = rows_of(info), row = row_elements(info);
    char *out = xmalloc((size_t)MAX(1, rows * row) * dtype_size(t));
    for (int64_t r = 0; r < rows; r += step)
        assert_int_equal(weights_read(w, i, r, MIN(step, rows - r), t, out + (size_t)(r * row) * dtype_size(t)), OK);
    return out;
}

static void assert_same_f32(const char *name, const float *got, const float *want, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        if (memcmp(&got[k], &want[k], sizeof *got))
            fail_msg("%s[%lld]: %.9g (%a), expected %.9g (%a)", name, (long long)k, (double)got[k], (double)got[k],
                     (double)want[k], (double)want[k]);
}

static void compare_tensor(Weights *w, int i, Weights *golden, int g)
{
    const TensorInfo *a = weights_info(w, i), *b = weights_info(golden, g);
    assert_int_equal(a->ndim, b->ndim);
    for (int d = 0; d < a->ndim; d++) assert_int_equal(a->shape[d], b->shape[d]);
    int64_t n = rows_of(b) * row_elements(b);
    float *want = read_tensor(golden, g, DT_F32, MAX(1, rows_of(b)));
    static const int64_t steps[] = {1, 3, 7, 1 << 20};
    for (size_t s = 0; s < COUNT_OF(steps); s++) {
        float *got = read_tensor(w, i, DT_F32, steps[s]);
        bf16_t *half = read_tensor(w, i, DT_BF16, steps[s]);
        assert_same_f32(a->name, got, want, n);
        for (int64_t k = 0; k < n; k++) assert_int_equal(half[k], f32_to_bf16(want[k]));
        free(got);
        free(half);
    }
    free(want);
}

// Every tensor of the golden .safetensors is in the .gguf, bit for bit, and nothing else is except `extra`.
static void compare_gguf(const char *name, int extra)
{
    Weights *w = weights_must_open(tmpf(GOLDEN "%s.gguf", name));
    Weights *golden = weights_must_open(tmpf(GOLDEN "%s.safetensors", name));
    assert_true(weights_is_gguf(w));
    assert_false(weights_is_gguf(golden));
    assert_int_equal(weights_count(w), weights_count(golden) + extra);
    for (int g = 0; g < weights_count(golden); g++) {
        int i = weights_find(w, weights_info(golden, g)->name);
        if (i < 0) fail_msg("%s.gguf has no %s", name, weights_info(golden, g)->name);
        compare_tensor(w, i, golden, g);
    }
    weights_close(w);
    weights_close(golden);
}

static void test_gguf_quants(void **state)
{
    (void)state;
    compare_gguf("quants", 1);
}

static void test_gguf_families(void **state)
{
    (void)state;
    compare_gguf("llama", 0);
    compare_gguf("qwen3", 0);
    compare_gguf("gemma3", 0);
    compare_gguf("olmo2", 0);
    compare_gguf("phi3", 0);
}

static void test_gguf_version_2(void **state) // the same layout as version 3
{
    (void)state;
    char *data;
    size_t bytes;
    assert_int_equal(file_read(GOLDEN "qwen3.gguf", 1 << 20, &data, &bytes), OK);
    data[4] = 2;
    scratch_put("v2.gguf", data, bytes);
    char *path = scratch_path("v2.gguf");
    Weights *w = weights_must_open(path);
    assert_true(weights_find(w, "model.layers.1.self_attn.q_norm.weight") >= 0);
    weights_close(w);
    free(path);
    free(data);
}

static void test_unknown_family_keeps_its_names(void **state)
{
    (void)state;
    char *data, *path = scratch_path("other.gguf"), *arch;
    size_t bytes;
    assert_int_equal(file_read(GOLDEN "qwen3.gguf", 1 << 20, &data, &bytes), OK);
    assert_non_null(arch = memmem(data, bytes, "qwen3", 5));
    memcpy(arch, "other", 5);
    scratch_put("other.gguf", data, bytes);
    Weights *w = weights_must_open(path);
    assert_true(weights_find(w, "blk.1.attn_q.weight") >= 0);
    assert_true(weights_find(w, "model.norm.weight") < 0);
    weights_close(w);
    free(path);
    free(data);
}

// ---- safetensors ----------------------------------------------------------------------------------------------------
static void test_dtypes_that_are_weights(void **state)
{
    (void)state;
    static const char *const files[][2] = {{"f32", "F32"}, {"f16", "F16"}, {"bf16", "BF16"}, {"f64", "F64"}};
    for (size_t f = 0; f < COUNT_OF(files); f++) {
        Weights *w = weights_must_open(tmpf(GOLDEN "dtypes/%s.safetensors", files[f][0]));
        int i = weights_find(w, "t"), g = weights_find(w, "t.f32");
        assert_string_equal(weights_info(w, i)->stored, files[f][1]);
        compare_tensor(w, i, w, g);
        weights_close(w);
    }
}

static void test_dtypes_that_are_not(void **state)
{
    (void)state;
    static const char *const files[][2] = {
        {"int64", "I64"},
        {"int32", "I32"},
        {"int16", "I16"},
        {"int8", "I8"},
        {"uint8", "U8"},
        {"uint16", "U16"},
        {"uint32", "U32"},
        {"uint64", "U64"},
        {"bool", "BOOL"},
        {"float8_e4m3fn", "F8_E4M3"},
        {"float8_e5m2", "F8_E5M2"},
    };
    float x[12];
    for (size_t f = 0; f < COUNT_OF(files); f++) {
        Weights *w = weights_must_open(tmpf(GOLDEN "dtypes/%s.safetensors", files[f][0]));
        const TensorInfo *t = weights_info(w, 0);
        assert_string_equal(t->stored, files[f][1]);
        assert_int_equal(t->ndim, 2);
        assert_int_equal(t->shape[1], 4);
        assert_input_error(weights_read(w, 0, 0, 3, DT_F32, x), files[f][0], tmpf("stored as %s", files[f][1]));
        weights_close(w);
    }
    Weights *w = weights_must_open(GOLDEN "quants.gguf");
    assert_input_error(weights_read(w, weights_find(w, "I32"), 0, 4, DT_F32, x), "I32", "tensor I32: stored as I32");
    weights_close(w);
}

static void test_shapes(void **state)
{
    (void)state;
    Weights *w = weights_must_open(GOLDEN "dtypes/shapes.safetensors");
    float x[24];
    assert_int_equal(weights_info(w, weights_find(w, "scalar"))->ndim, 0);
    assert_int_equal(weights_read(w, weights_find(w, "scalar"), 0, 1, DT_F32, x), OK);
    assert_true(x[0] == 2.5f);
    assert_int_equal(weights_read(w, weights_find(w, "vector"), 3, 2, DT_F32, x), OK); // a row per element
    assert_true(x[0] == 3 && x[1] == 4);
    assert_int_equal(weights_read(w, weights_find(w, "cube"), 1, 1, DT_F32, x), OK);
    for (int i = 0; i < 12; i++) assert_true(x[i] == (float)(12 + i));
    const TensorInfo *empty = weights_info(w, weights_find(w, "empty"));
    assert_int_equal(empty->shape[0], 0);
    assert_int_equal(empty->bytes, 0);
    assert_int_equal(weights_read(w, weights_find(w, "empty"), 0, 0, DT_F32, x), OK);
    assert_int_equal(weights_total_bytes(w), (1 + 5 + 24) * 4);
    weights_close(w);
}

static void test_shards(void **state)
{
    (void)state;
    Weights *w = weights_must_open(GOLDEN "shards");
    float x[8];
    assert_int_equal(weights_count(w), 3);
    assert_int_equal(weights_find(w, "d.weight"), -1);
    assert_int_equal(weights_read(w, weights_find(w, "a.weight"), 1, 1, DT_F32, x), OK);
    assert_true(x[0] == 3 && x[2] == 5);
    assert_int_equal(weights_read(w, weights_find(w, "c.weight"), 3, 1, DT_F32, x), OK);
    assert_true(x[0] == -6 && x[1] == -7);
    weights_close(w);
}

static void test_names_do_not_matter(void **state) // what a file is stands in it
{
    (void)state;
    char *data, *path = scratch_path("blob");
    size_t bytes;
    assert_int_equal(file_read(GOLDEN "dtypes/f32.safetensors", 1 << 20, &data, &bytes), OK);
    scratch_put("blob", data, bytes);
    Weights *w = weights_must_open(path);
    assert_int_equal(weights_count(w), 2);
    weights_close(w);
    free(data);
    free(path);
}

static void test_metadata(void **state)
{
    (void)state;
    Weights *w = weights_must_open(GOLDEN "shards");
    char *text = weights_meta_json(w, "format");
    assert_string_equal(text, "\"pt\"");
    assert_null(weights_meta_json(w, "none"));
    free(text);
    weights_close(w);
}

// ---- GGUF keys ------------------------------------------------------------------------------------------------------
static void test_gguf_keys(void **state)
{
    (void)state;
    static const char *const keys[][2] = {
        {"general.architecture", "\"llama\""},
        {"llama.attention.head_count", "4"},
        {"t.u8", "255"},
        {"t.i8", "-128"},
        {"t.u16", "65535"},
        {"t.i16", "-32768"},
        {"t.u32", "4294967295"},
        {"t.i32", "-2147483648"},
        {"t.u64", "9223372036854775809"},
        {"t.i64", "-9223372036854775808"},
        {"t.f32", "1e-05"},
        {"t.f64", "0.1"},
        {"t.whole", "10000.0"},
        {"t.true", "true"},
        {"t.false", "false"},
        {"t.string", "\"say \\\"hi\\\"\\n\\\\ \xc3\xa9\xf0\x9f\x98\x80\\u0001\""},
        {"t.empty", "\"\""},
        {"t.bools", "[true,false]"},
        {"tokenizer.ggml.tokens", "[\"<s>\",\"\xc4\xa0"
                                  "a\",\"\xc3\xa9\",\"\\\"\",\"\\\\\"]"},
        {"tokenizer.ggml.token_type", "[3,1,1,1,1]"},
        {"tokenizer.ggml.scores", "[0.0,-1.5,3.40282347e+38,1.4013e-45,0.1]"},
    };
    Weights *w = weights_must_open(GOLDEN "llama.gguf");
    for (size_t k = 0; k < COUNT_OF(keys); k++) {
        char *text = weights_meta_json(w, keys[k][0]);
        assert_non_null(text);
        assert_string_equal(text, keys[k][1]);
        free(text);
    }
    assert_null(weights_meta_json(w, "t.none"));
    weights_close(w);
}

// ---- use --------------------------------------------------------------------------------------------------------------
typedef struct Reading {
    Weights *w;
    const float *want; // of tensor i
    int i;
    bool same;
} Reading;

static void *read_many(void *arg)
{
    Reading *r = arg;
    const TensorInfo *t = weights_info(r->w, r->i);
    size_t bytes = (size_t)(rows_of(t) * row_elements(t)) * sizeof(float);
    float *x = xmalloc(bytes);
    r->same = true;
    for (int k = 0; k < 200 && r->same; k++)
        r->same = weights_read(r->w, r->i, 0, rows_of(t), DT_F32, x) == OK && !memcmp(x, r->want, bytes);
    free(x);
    return NULL;
}

static void test_threads_share_a_file(void **state)
{
    (void)state;
    Weights *w = weights_must_open(GOLDEN "llama.gguf");
    enum { THREADS = 4 };
    pthread_t thread[THREADS];
    Reading reading[THREADS];
    for (int k = 0; k < THREADS; k++) {
        int i = k * 5;
        reading[k] = (Reading){w, read_tensor(w, i, DT_F32, 1 << 20), i, false};
    }
    for (int k = 0; k < THREADS; k++) assert_int_equal(pthread_create(&thread[k], NULL, read_many, &reading[k]), 0);
    for (int k = 0; k < THREADS; k++) {
        pthread_join(thread[k], NULL);
        assert_true(reading[k].same);
        free((float *)reading[k].want);
    }
    weights_close(w);
}

static void test_file_cut_while_open(void **state)
{
    (void)state;
    char *data, *path = scratch_path("cut.safetensors");
    size_t bytes;
    float x[16];
    assert_int_equal(file_read(GOLDEN "dtypes/f64.safetensors", 1 << 20, &data, &bytes), OK);
    scratch_put("cut.safetensors", data, bytes);
    Weights *w = weights_must_open(path);
    assert_int_equal(truncate(path, (off_t)bytes - 80), 0);
    int status = OK;
    for (int i = 0; i < weights_count(w) && status == OK; i++) status = weights_read(w, i, 0, 4, DT_F32, x);
    assert_input_error(status, "cut", "cut.safetensors: ends at byte");
    weights_close(w);
    free(path);
    free(data);
}

// One call that takes many reads of the file, from the middle of a tensor on.
static int ramp_rows(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    (void)ctx;
    for (int64_t i = 0; i < rows * 100; i++) ((uint16_t *)dst)[i] = (uint16_t)((row0 * 100 + i) % 30000);
    return OK;
}

static void test_long_reads(void **state)
{
    (void)state;
    TensorOut t = {"long", DT_F16, 2, {3000, 100}, ramp_rows, NULL};
    char *path = scratch_path("long.safetensors");
    assert_int_equal(safetensors_write(path, &t, 1), OK);
    Weights *w = weights_must_open(path);
    float *all = xmalloc(3000 * 100 * sizeof *all), row[100];
    bf16_t *half = xmalloc(3000 * 100 * sizeof *half);
    assert_int_equal(weights_read(w, 0, 7, 2993, DT_F32, all), OK);
    assert_int_equal(weights_read(w, 0, 7, 2993, DT_BF16, half), OK);
    for (int64_t r = 7; r < 3000; r++) {
        assert_int_equal(weights_read(w, 0, r, 1, DT_F32, row), OK);
        assert_memory_equal(row, all + (r - 7) * 100, sizeof row);
        for (int i = 0; i < 100; i++) assert_int_equal(half[(r - 7) * 100 + i], f32_to_bf16(row[i]));
    }
    assert_true(row[99] == 21232.0f); // the half 0x752f
    weights_close(w);
    free(all);
    free(half);
    free(path);
}

// A tensor of 32 MiB, read as bf16 by 16 rows: the process grows by the buffers of one call.
static int zero_rows(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    (void)row0;
    memset(dst, 0, (size_t)rows * *(size_t *)ctx);
    return OK;
}

static void test_reading_keeps_nothing_resident(void **state)
{
    (void)state;
    size_t row_bytes = 4096 * sizeof(float);
    TensorOut t = {"big", DT_F32, 2, {2048, 4096}, zero_rows, &row_bytes};
    char *path = scratch_path("big.safetensors");
    assert_int_equal(safetensors_write(path, &t, 1), OK);
    bf16_t *rows = xmalloc(16 * 4096 * sizeof *rows);
    size_t before = peak_rss_bytes();
    Weights *w = weights_must_open(path);
    for (int64_t r = 0; r < 2048; r += 16) assert_int_equal(weights_read(w, 0, r, 16, DT_BF16, rows), OK);
    assert_true(peak_rss_bytes() - before < 4 << 20);
    weights_close(w);
    unlink(path);
    free(rows);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_quants),
        cmocka_unit_test(test_gguf_families),
        cmocka_unit_test(test_gguf_version_2),
        cmocka_unit_test(test_unknown_family_keeps_its_names),
        cmocka_unit_test(test_dtypes_that_are_weights),
        cmocka_unit_test(test_dtypes_that_are_not),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_names_do_not_matter),
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_gguf_keys),
        cmocka_unit_test(test_threads_share_a_file),
        cmocka_unit_test(test_file_cut_while_open),
        cmocka_unit_test(test_long_reads),
        cmocka_unit_test(test_reading_keeps_nothing_resident),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
