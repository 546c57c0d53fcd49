// The checkers are checked: each kernel of seeded.def is clean without its bug, and found by whom the table names with it, in every order.
#include "cudahost_test.h"
#include "seeded.h"

enum { WRONG = CUDAHOST_KIND_COUNT, ORDER, WAVEFRONTS, SECTORS };

typedef struct Seeded {
    const char *name, *what;
    int found_by;
    void (*launch)(bool bug, const float *in, float *out);
} Seeded;
static const Seeded table[] = {
#define SEEDED(kernel, found_by, what) {#kernel, what, found_by, seeded_##kernel},
#include "seeded.def"
#undef SEEDED
};

enum { BYTES = SEEDED_FLOATS * sizeof(float) };
static float *in, *out, right[SEEDED_FLOATS];

static int open_buffers(void **state)
{
    (void)state;
    in = device_random("in", DT_F32, SEEDED_FLOATS, 1, 1);
    out = device_empty("out", DT_F32, SEEDED_FLOATS);
    // The first ones are also read as bf16: whole numbers, so that sums are exact.
    for (int i = 0; i < 384; i++) ((bf16_t *)in)[i] = f32_to_bf16((float)(i * 37 % 23 - 11));
    return 0;
}
static int close_buffers(void **state)
{
    (void)state;
    cudahost_free(in), cudahost_free(out);
    return 0;
}

static void run(const Seeded *s, bool bug)
{
    cudahost_clear();
    memset(out, 0, BYTES);
    s->launch(bug, in, out);
}

// Cost over ideal, of global or of shared memory
static double cost_ratio(bool shared)
{
    const CudahostTotals t = cudahost_totals();
    return shared ? (double)t.wavefronts / (double)t.wavefronts_ideal : (double)t.sectors / (double)t.sectors_ideal;
}

static const CudahostFinding *finding_of(int kind)
{
    for (size_t i = 0; i < cudahost_findings(); i++)
        if ((int)cudahost_finding(i)->kind == kind) return cudahost_finding(i);
    return NULL;
}

// Without hooks (under AddressSanitizer) what lies outside of the executor's own view is not looked at.
static bool can_find(int found_by)
{
    switch (found_by) {
    case CUDAHOST_RACE:
    case CUDAHOST_UNWRITTEN:
    case CUDAHOST_OUT_OF_BOUNDS:
    case CUDAHOST_MISALIGNED:
    case CUDAHOST_ASYNC:
    case WAVEFRONTS:
    case SECTORS: return cudahost_hooked();
    default: return true;
    }
}

static void expect_clean(const Seeded *s, bool first)
{
    run(s, false);
    expect_no_findings(s->name);
    if (first) memcpy(right, out, BYTES);
    assert_memory_equal(right, out, BYTES);
    if (s->found_by == WAVEFRONTS) assert_true(cost_ratio(true) == 1);
    if (s->found_by == SECTORS) assert_true(cost_ratio(false) == 1);
}

static void expect_text(const Seeded *s, const char *text)
{
    const bool two_places = s->found_by == CUDAHOST_RACE || s->found_by == CUDAHOST_DIVERGENCE;
    const char *place = strstr(text, "seeded.cu:");
    if (!place || (two_places && !strstr(place + 1, "seeded.cu:")))
        fail_msg("%s: places are not named: %s", s->name, text);
}

static void expect_found(const Seeded *s)
{
    run(s, true);
    switch (s->found_by) {
    case WRONG: assert_true(memcmp(right, out, BYTES) != 0); break;
    case WAVEFRONTS: assert_true(cost_ratio(true) > 1.05); break;
    case SECTORS: assert_true(cost_ratio(false) > 1.1); break;
    default: {
        const CudahostFinding *f = finding_of(s->found_by);
        if (!f) fail_msg("%s (%s): not found", s->name, s->what);
        if (getenv("VERBOSE")) print_message("%s: %s\n", cudahost_kind_name(f->kind), f->text);
        if (s->found_by != CUDAHOST_LAUNCH && s->found_by != CUDAHOST_ASYNC) expect_text(s, f->text);
    }
    }
}

static void test_found(void **state)
{
    (void)state;
    for (const Seeded *s = table; s < table + COUNT_OF(table); s++) {
        if (!can_find(s->found_by)) continue;
        FOR_EACH_ORDER(i) expect_clean(s, i == 0);
        if (s->found_by != ORDER) FOR_EACH_ORDER(i) expect_found(s);
    }
    cudahost_clear();
}

static void test_order(void **state)
{
    (void)state;
    for (const Seeded *s = table; s < table + COUNT_OF(table); s++) {
        if (s->found_by != ORDER) continue;
        bool same = true;
        FOR_EACH_ORDER(i)
        {
            run(s, true);
            expect_no_findings(s->name);
            if (i == 0) memcpy(right, out, BYTES);
            same = same && memcmp(right, out, BYTES) == 0;
        }
        if (same) fail_msg("%s: the same in every order", s->name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_found), cmocka_unit_test(test_order)};
    return cmocka_run_group_tests(tests, open_buffers, close_buffers);
}
