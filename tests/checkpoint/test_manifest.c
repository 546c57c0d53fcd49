// The MANIFEST's text: what is printed is read back, and each rule of its grammar is kept. Digests of whole
// files are test_checkpoint's.
#include "io/manifest.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

// Takes `body` as the text before the last line, adds the right digest, and parses.
static int parse_body(Manifest *m, const char *body)
{
    Buf b = {0};
    buf_printf(&b, "%send %016llx\n", body, (unsigned long long)hash64(body, strlen(body), 0));
    return manifest_parse(m, "MANIFEST", b.data, b.len);
}

#define HEAD "attune-manifest 1\nstep 3\nfile state.h5 100\n"
#define ONE  "tensor 10 40 f32 5 2 model/a b\n"
#define CUTS "leaf 0 10 00000000000000ff\nleaf 10 40 0123456789abcdef\nleaf 50 50 0000000000000000\n"

static void test_a_good_one(void **state)
{
    (void)state;
    Manifest m;
    assert_int_equal(parse_body(&m, HEAD ONE CUTS), OK);
    assert_int_equal(m.step, 3);
    assert_int_equal(m.file_bytes, 100);
    assert_int_equal(m.n_tensors, 1);
    assert_string_equal(m.tensors[0].name, "model/a b");
    assert_int_equal(m.tensors[0].shape[1], 2);
    assert_int_equal(m.n_leaves, 3);
    assert_int_equal(m.leaves[0].tensor, -1);
    assert_int_equal(m.leaves[1].tensor, 0);
    assert_int_equal(m.leaves[2].tensor, -1);
    assert_true(m.leaves[1].digest == 0x0123456789abcdef);
    manifest_free(&m);
}

static void test_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *body, *what;
    } rows[] = {
        {"", "version 1"},
        {"attune-manifest 2\nstep 3\nfile state.h5 0\n", "version 1"},
        {"attune-manifest 1\nstep -3\nfile state.h5 0\n", "number"},
        {"attune-manifest 1\nstep 03\nfile state.h5 0\n", "number"},
        {"attune-manifest 1\nstep 9223372036854775808\nfile state.h5 0\n", "number"},
        {"attune-manifest 1\nstep 3\nfile other.h5 0\n", "file state.h5"},
        {"attune-manifest 1\nstep 3 \nfile state.h5 0\n", "should end"},
        {HEAD ONE, "do not cover"},
        {HEAD ONE CUTS "leaf 100 1 0000000000000000\n", "does not go on"},
        {HEAD ONE CUTS ONE, "was expected"},
        {HEAD ONE CUTS "\n", "was expected"},
        {HEAD ONE "leaf 0 50 00000000000000ff\nleaf 50 50 0000000000000000\n", "crosses"},
        {HEAD ONE "leaf 0 10 00000000000000ff\nleaf 10 41 0000000000000000\nleaf 51 49 0000000000000000\n", "crosses"},
        {HEAD ONE "leaf 0 10 00000000000000ff\nleaf 11 39 0000000000000000\n", "does not go on"},
        {HEAD "leaf 0 100 00000000000000FF\n", "digest"},
        {HEAD "leaf 0 100 ff\n", "digest"},
        {HEAD "leaf 0 0 0000000000000000\n", "does not go on"},
        {HEAD "leaf 0 101 0000000000000000\n", "does not go on"},
        {HEAD "tensor 10 41 f32 5 2 model/a\n", "does not make its size"},
        {HEAD "tensor 10 0 f32 0 2 model/a\n", "does not make its size"},
        {HEAD "tensor 10 4 f32 4294967296 4294967297 model/a\n", "does not make its size"},
        {HEAD "tensor 10 8 f64 1 1 model/a\n", "known type"},
        {HEAD "tensor 61 40 f32 5 2 model/a\n", "outside"},
        {HEAD "tensor 9223372036854775000 40 f32 5 2 model/a\n", "outside"},
        {HEAD ONE "tensor 49 4 f32 1 1 model/b\n", "over another"},
        {HEAD ONE "tensor 5 4 f32 1 1 model/b\n", "over another"},
        {HEAD "tensor 10 40 f32 5 2 \n", "name"},
        {HEAD "tensor 10 40 f32 5 2 a\tb\n", "control"},
        {HEAD "tensor 10 40 f32 5 2\n", "space"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        Manifest m;
        if (parse_body(&m, rows[i].body) != E_INPUT) fail_msg("row %zu was accepted", i);
        if (!strstr(error_last()->what, rows[i].what)) fail_msg("row %zu: %s", i, error_last()->what);
        assert_non_null(strstr(error_last()->place, "MANIFEST:"));
        error_clear();
    }
}

// Leaves end where tensors begin and end, and are never too large.
static void test_cutting(void **state)
{
    (void)state;
    enum { BIG = 2 * MANIFEST_LEAF_BYTES + 7 };
    Manifest m = {.step = 9, .file_bytes = 50 + BIG + 100, .n_tensors = 3}, back;
    m.tensors = xcalloc(3, sizeof *m.tensors);
    m.tensors[0] = (ManifestTensor){50 + BIG, 30, DT_U8, {30, 1}, "last"};
    m.tensors[1] = (ManifestTensor){0, 20, DT_F32, {5, 1}, "first"};
    m.tensors[2] = (ManifestTensor){50, BIG, DT_U8, {BIG, 1}, "big"};
    manifest_cut(&m);
    static const struct {
        uint64_t bytes;
        int tensor;
    } want[] = {{20, 0}, {30, -1}, {MANIFEST_LEAF_BYTES, 1}, {MANIFEST_LEAF_BYTES, 1}, {7, 1}, {30, 2}, {70, -1}};
    assert_int_equal(m.n_leaves, COUNT_OF(want));
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        assert_int_equal(m.leaves[i].bytes, want[i].bytes);
        assert_int_equal(m.leaves[i].tensor, want[i].tensor);
        m.leaves[i].digest = UINT64_MAX / (i + 1);
    }
    Buf text = {0};
    manifest_print(&m, &text);
    assert_int_equal(manifest_parse(&back, "MANIFEST", text.data, text.len), OK); // it owns the text now
    assert_int_equal(back.n_leaves, m.n_leaves);
    for (size_t i = 0; i < m.n_leaves; i++) {
        assert_true(back.leaves[i].digest == m.leaves[i].digest && back.leaves[i].offset == m.leaves[i].offset);
        assert_true(back.leaves[i].bytes == m.leaves[i].bytes && back.leaves[i].tensor == m.leaves[i].tensor);
    }
    assert_string_equal(back.tensors[2].name, "last");
    manifest_free(&back);
    manifest_free(&m);
}

static uint64_t draw(uint64_t stream, uint64_t i)
{
    return hash64(&i, sizeof i, stream);
}

// Bytes pass in runs of any length, in any order of the runs: a leaf has its digest if it lay in one run, and else none.
static void test_digests_of_what_passes(void **state)
{
    (void)state;
    enum { BIG = 2 * MANIFEST_LEAF_BYTES + 7, FILE_BYTES = 50 + BIG + 100 };
    char *bytes = xmalloc(FILE_BYTES);
    Digest *whole = digest_open();
    for (size_t i = 0; i < FILE_BYTES; i++) bytes[i] = (char)(i * 2654435761u >> 13);
    for (uint64_t trial = 0; trial < 40; trial++) {
        Manifest m = {.file_bytes = FILE_BYTES, .n_tensors = 1};
        LeafWatch w;
        m.tensors = xcalloc(1, sizeof *m.tensors);
        m.tensors[0] = (ManifestTensor){50, BIG, DT_U8, {BIG, 1}, "big"};
        manifest_cut(&m);
        leaves_watch(&w, &m);
        // two runs that meet at `cut`, the later one first in every other trial, each in pieces
        const uint64_t cut = trial < 5 ? (uint64_t[]){0, 50, 50 + MANIFEST_LEAF_BYTES, 50 + BIG, FILE_BYTES}[trial]
                                       : draw(0, trial) % FILE_BYTES;
        const uint64_t runs[2][2] = {{0, cut}, {cut, FILE_BYTES}};
        for (uint64_t r = 0; r < 2; r++) {
            const uint64_t *run = runs[(r + trial) % 2];
            for (uint64_t at = run[0], i = 0; at < run[1]; i++) {
                const uint64_t n = MIN(draw(1 + trial, i) % (3 << 20) + 1, run[1] - at);
                leaves_pass(&w, at, bytes + at, n);
                at += n;
            }
        }
        for (size_t i = 0; i < m.n_leaves; i++) {
            const ManifestLeaf *l = &m.leaves[i];
            // in order, the two runs are one
            const bool cut_up = trial % 2 && l->offset < cut && cut < l->offset + l->bytes;
            digest_add(whole, bytes + l->offset, l->bytes);
            const uint64_t digest = digest_take(whole);
            assert_int_equal(w.known[i], !cut_up);
            assert_true(l->digest == (cut_up ? 0 : digest));
        }
        leaves_watch_end(&w);
        manifest_free(&m);
    }
    digest_close(whole);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_good_one),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_cutting),
        cmocka_unit_test(test_digests_of_what_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
