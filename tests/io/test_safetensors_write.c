// runtime/io/safetensors_write.c: the library's own bytes, whole files or none.
#include "io_test.h"
#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>

// Element i of every tensor is i, in its own type: what written.safetensors holds.
typedef struct Ramp {
    DType t;
    int64_t row;      // elements
    int64_t next_row; // slices come in order
    int64_t fail_at;  // row from which reading fails; -1: never
} Ramp;

static void put_element(DType t, int64_t i, char *to)
{
    float f = (float)i;
    int32_t whole = (int32_t)i;
    bf16_t b = f32_to_bf16(f);
    static const uint16_t halves[] = {0, 0x3c00, 0x4000, 0x4200}; // 0, 1, 2, 3
    switch (t) {
    case DT_F32: memcpy(to, &f, 4); break;
    case DT_BF16: memcpy(to, &b, 2); break;
    case DT_F16: memcpy(to, &halves[i], 2); break;
    case DT_I64: memcpy(to, &i, 8); break;
    case DT_I32: memcpy(to, &whole, 4); break;
    default: *to = (char)i;
    }
}

static int read_ramp(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    Ramp *r = ctx;
    assert_int_equal(row0, r->next_row);
    r->next_row += rows;
    if (r->fail_at >= 0 && r->next_row > r->fail_at)
        return (fail)(E_FAILED, "ramp", NULL, "no more rows"); // not cmocka's macro
    size_t size = dtype_size(r->t);
    for (int64_t i = 0; i < rows * r->row; i++) put_element(r->t, row0 * r->row + i, (char *)dst + (size_t)i * size);
    return OK;
}

static void test_bytes_of_the_library(void **state)
{
    (void)state;
    Ramp ramp[10] = {{DT_F32, 3, 0, -1}, {DT_F32, 1, 0, -1}, {DT_BF16, 2, 0, -1}, {DT_F16, 2, 0, -1},
                     {DT_I64, 1, 0, -1}, {DT_I32, 3, 0, -1}, {DT_U8, 1, 0, -1},   {DT_F32, 1, 0, -1},
                     {DT_F32, 4, 0, -1}, {DT_F32, 2, 0, -1}};
    const TensorOut tensors[] = {
        {"z.f32", DT_F32, 2, {2, 3}, read_ramp, &ramp[0]},
        {"a.f32", DT_F32, 1, {5}, read_ramp, &ramp[1]},
        {"b.bf16", DT_BF16, 2, {3, 2}, read_ramp, &ramp[2]},
        {"h.f16", DT_F16, 2, {2, 2}, read_ramp, &ramp[3]},
        {"i.i64", DT_I64, 1, {3}, read_ramp, &ramp[4]},
        {"j.i32", DT_I32, 2, {1, 3}, read_ramp, &ramp[5]},
        {"u.u8", DT_U8, 1, {3}, read_ramp, &ramp[6]},
        {"s.f32", DT_F32, 0, {0}, read_ramp, &ramp[7]},
        {"e.f32", DT_F32, 2, {0, 4}, read_ramp, &ramp[8]},
        {"k\"\\\xc3\xa9.f32", DT_F32, 3, {2, 1, 2}, read_ramp, &ramp[9]},
    };
    char *path = scratch_path("written.safetensors"), *got, *want;
    size_t got_bytes, want_bytes;
    assert_int_equal(safetensors_write(path, tensors, (int)COUNT_OF(tensors)), OK);
    assert_int_equal(file_read(path, 1 << 20, &got, &got_bytes), OK);
    assert_int_equal(file_read(GOLDEN "written.safetensors", 1 << 20, &want, &want_bytes), OK);
    assert_int_equal(got_bytes, want_bytes);
    assert_memory_equal(got, want, want_bytes);
    assert_int_equal(safetensors_bytes(tensors, (int)COUNT_OF(tensors)), want_bytes);
    free(got);
    free(want);
    free(path);
}

static void test_header_is_padded(void **state) // whatever the names' lengths, the data starts at a multiple of 8
{
    (void)state;
    static const char letters[] = "abcdefgh";
    char *path = scratch_path("padded.safetensors"), *data;
    for (size_t n = 1; n < sizeof letters; n++) {
        Ramp ramp = {DT_U8, 1, 0, -1};
        char *name = xstrndup(letters, n);
        TensorOut t = {name, DT_U8, 1, {1}, read_ramp, &ramp};
        size_t bytes;
        assert_int_equal(safetensors_write(path, &t, 1), OK);
        assert_int_equal(file_read(path, 1 << 20, &data, &bytes), OK);
        assert_int_equal(bytes % 8, 1);
        assert_int_equal((uint8_t)data[0], bytes - 8 - 1);
        weights_close(weights_must_open(path));
        free(data);
        free(name);
    }
    free(path);
}

static void test_no_tensors(void **state)
{
    (void)state;
    char *path = scratch_path("none.safetensors");
    assert_int_equal(safetensors_write(path, NULL, 0), OK);
    Weights *w = weights_must_open(path);
    assert_int_equal(weights_count(w), 0);
    weights_close(w);
    free(path);
}

// Several MiB: slices, in order, that read back as they were.
static void test_large_tensor(void **state)
{
    (void)state;
    Ramp ramp = {DT_F32, 1000, 0, -1};
    TensorOut t = {"large", DT_F32, 2, {1500, 1000}, read_ramp, &ramp};
    char *path = scratch_path("large.safetensors");
    float row[1000];
    assert_int_equal(safetensors_write(path, &t, 1), OK);
    assert_int_equal(ramp.next_row, 1500);
    Weights *w = weights_must_open(path);
    for (int64_t r = 0; r < 1500; r += 499) {
        assert_int_equal(weights_read(w, 0, r, 1, DT_F32, row), OK);
        for (int64_t i = 0; i < 1000; i++) assert_true(row[i] == (float)(r * 1000 + i));
    }
    weights_close(w);
    unlink(path);
    free(path);
}

static int files_in(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

// Writes to scratch/dir/t.safetensors, which holds "old": that must stay, alone, when writing fails.
static int write_over(Ramp *ramp)
{
    char *dir = scratch_path("dir"), *path = scratch_path("dir/t.safetensors"), *text;
    assert_int_equal(make_dirs(dir), OK);
    scratch_put("dir/t.safetensors", "old", 3);
    TensorOut t = {"large", DT_F32, 2, {1000, 1000}, read_ramp, ramp};
    int status = safetensors_write(path, &t, 1);
    assert_int_equal(files_in(dir), 1);
    assert_int_equal(file_read(path, 1 << 24, &text, NULL), OK);
    if (status < 0) assert_string_equal(text, "old");
    free(text);
    free(path);
    free(dir);
    return status;
}

static void test_source_that_fails(void **state)
{
    (void)state;
    static const int64_t at[] = {0, 500, 999};
    for (size_t i = 0; i < COUNT_OF(at); i++) {
        Ramp ramp = {DT_F32, 1000, 0, at[i]};
        assert_int_equal(write_over(&ramp), E_FAILED);
        assert_string_equal(error_last()->what, "no more rows");
        error_clear();
    }
    Ramp ramp = {DT_F32, 1000, 0, -1};
    assert_int_equal(write_over(&ramp), OK);
}

static void test_disk_that_is_full(void **state) // a limit on the size of files stands for it
{
    (void)state;
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_IGN);
    static const rlim_t limits[] = {16, 4096, 1 << 20, 3999999};
    for (size_t i = 0; i < COUNT_OF(limits); i++) {
        Ramp ramp = {DT_F32, 1000, 0, -1};
        small = (struct rlimit){limits[i], old.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        int status = write_over(&ramp);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_equal(status, E_FAILED);
        assert_non_null(strstr(error_last()->what, "cannot write"));
        error_clear();
    }
}

static void test_path_that_cannot_be(void **state)
{
    (void)state;
    char *path = scratch_path("no-such-directory/t.safetensors");
    assert_input_error(safetensors_write(path, NULL, 0), "path", "cannot create");
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_of_the_library), cmocka_unit_test(test_header_is_padded),
        cmocka_unit_test(test_no_tensors),           cmocka_unit_test(test_large_tensor),
        cmocka_unit_test(test_source_that_fails),    cmocka_unit_test(test_disk_that_is_full),
        cmocka_unit_test(test_path_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
