// Checkpoints: what is saved comes back, damage is found and named, a failed save leaves nothing, old steps
// go. Every rank runs every test in one shared directory; rank 0 does what is done to the files.
#define _GNU_SOURCE
#include "case.h"
#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "io/rundir.h"
#include <cmocka.h>

static Comm *world;
static int rank, size;
static char *output; // a fresh directory for each test

static const char *in_output(const char *path)
{
    return tmpf("%s/checkpoints/%s", output, path);
}

static int save(int64_t step, int keep)
{
    Case k;
    case_open(&k, step, rank, size);
    CkptMeta meta = {.step = step, .json = (char *)"{\"recipe\": \"text\"}"};
    int status = checkpoint_save(world, output, &meta, k.tensors, CASE_TENSORS, keep);
    case_close(&k);
    return status;
}

static int64_t newest(void)
{
    int64_t step;
    char *dir;
    assert_int_equal(checkpoint_find(world, output, &step, &dir), OK);
    assert_int_equal(dir == NULL, step < 0);
    free(dir);
    return step;
}

static void loads(int64_t step)
{
    Case k;
    case_open(&k, -1, rank, size);
    const char *dir = in_output(tmpf("step-%08lld", (long long)step));
    assert_int_equal(checkpoint_load(world, dir, k.tensors, CASE_TENSORS), OK);
    if (case_mistake(&k, step)) fail_msg("%s", case_mistake(&k, step));
    case_close(&k);
}

// Names of all that lies in checkpoints/, sorted, with blanks between; the same on every rank.
static const char *listing(void)
{
    static char text[512];
    text[0] = 0;
    comm_barrier(world);
    struct dirent **entries;
    int n = scandir(in_output(""), &entries, NULL, alphasort);
    for (int i = 0; i < n; i++) {
        if (!streq(entries[i]->d_name, ".") && !streq(entries[i]->d_name, "..")) {
            if (*text) strcat(text, " ");
            strcat(text, entries[i]->d_name);
        }
        free(entries[i]);
    }
    if (n >= 0) free(entries);
    comm_barrier(world);
    return text;
}

static void flip(const char *file, off_t byte, int bit)
{
    int fd = open(file, O_RDWR);
    char c;
    assert_true(fd >= 0 && pread(fd, &c, 1, byte) == 1);
    c ^= (char)(1 << bit);
    assert_int_equal(pwrite(fd, &c, 1, byte), 1);
    close(fd);
}

// ---- what is saved comes back -----------------------------------------------------------------------------
static void test_nothing_yet(void **state)
{
    (void)state;
    assert_int_equal(newest(), -1);
}

static void test_save_and_load(void **state)
{
    (void)state;
    CkptMeta meta;
    assert_int_equal(save(7, 0), OK);
    assert_int_equal(newest(), 7);
    assert_string_equal(listing(), "step-00000007");
    loads(7);
    assert_int_equal(checkpoint_load_meta(world, in_output("step-00000007"), &meta), OK);
    assert_int_equal(meta.step, 7);
    assert_string_equal(meta.json, "{\"recipe\": \"text\"}");
    checkpoint_meta_free(&meta);
    checkpoint_meta_free(&meta);
    assert_int_equal(checkpoint_verify(in_output("step-00000007")), OK);
}

static int count_tensor(void *ctx, const CkptTensor *t)
{
    int *found = ctx;
    Case k;
    case_open(&k, -1, 0, 1);
    for (int i = 0; i < CASE_TENSORS; i++) {
        const CkptTensor *want = &k.tensors[i];
        if (!streq(want->name, t->name)) continue;
        assert_int_equal(t->t, want->t);
        assert_memory_equal(t->shape, want->shape, sizeof t->shape);
        assert_null(t->data);
        ++*found;
    }
    case_close(&k);
    return *found < 100 ? OK : E_FAILED;
}

// What a checkpoint takes is known before there is one, to the byte, but for what its description will tell.
static void test_measured(void **state)
{
    (void)state;
    Case k;
    CkptMeta meta = {.step = 1, .json = (char *)"{\"recipe\": \"text\"}"};
    struct stat file, manifest;
    uint64_t bytes = 0;
    case_open(&k, -1, rank, size);
    assert_int_equal(checkpoint_measure(&meta, k.tensors, CASE_TENSORS, &bytes), OK);
    case_close(&k);
    assert_string_equal(listing(), "");
    assert_int_equal(save(1, 0), OK);
    assert_int_equal(stat(in_output("step-00000001/state.h5"), &file), 0);
    assert_int_equal(stat(in_output("step-00000001/MANIFEST"), &manifest), 0);
    assert_int_equal(bytes, file.st_size + manifest.st_size);
}

static void test_list(void **state)
{
    (void)state;
    int found = 0;
    assert_int_equal(save(1, 0), OK);
    assert_int_equal(checkpoint_list(in_output("step-00000001"), count_tensor, &found), OK);
    assert_int_equal(found, CASE_TENSORS);
    found = 1000; // the callback's status ends the listing
    assert_int_equal(checkpoint_list(in_output("step-00000001"), count_tensor, &found), E_FAILED);
    assert_int_equal(found, 1001);
}

// One tensor of the file, of another shape or type or not there, on every rank or only on the last.
static void test_what_does_not_fit(void **state)
{
    (void)state;
    float data[64];
    const CkptTensor fits = {"model/norm.weight", DT_F32, {24, 1}, 0, 24, 0, 1, data};
    CkptTensor longer = fits, other = fits, absent = fits, wide = fits;
    longer.shape[0] = 25;
    other.t = DT_I32;
    absent.name = "model/norm.bias";
    wide.shape[0] = 12, wide.shape[1] = 2, wide.rows = 12, wide.cols = 2;
    const CkptTensor *bad[] = {&longer, &other, &absent, &wide};
    const char *what[] = {"shape (24, 1)", "of type f32, not i32", "no tensor model/norm.bias", "must be (12, 2)"};
    assert_int_equal(save(1, 0), OK);
    char *dir = xstrdup(in_output("step-00000001"));
    assert_int_equal(checkpoint_load(world, dir, &fits, 1), OK);
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        for (int everywhere = 0; everywhere < 2; everywhere++) {
            bool mine = everywhere || rank == size - 1, tells = everywhere ? rank == 0 : rank == size - 1;
            assert_int_equal(checkpoint_load(world, dir, mine ? bad[i] : &fits, 1), E_INPUT);
            if (tells && !strstr(error_last()->what, what[i])) fail_msg("%s", error_last()->what);
            error_clear();
        }
    free(dir);
}

// ---- cuts -------------------------------------------------------------------------------------------------
// Grids of rows and columns, parts on some ranks only; read back at other grids.
static void test_random_grids(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (size > 2 ? 6 : 12); seed++) {
        Case k;
        case_open_grid(&k, (int64_t)seed, seed, rank, size);
        CkptMeta meta = {.step = (int64_t)seed, .json = (char *)"{}"};
        assert_int_equal(checkpoint_save(world, output, &meta, k.tensors, CASE_TENSORS, 1), OK);
        case_close(&k);
        case_open_grid(&k, -1, seed + 100, rank, size);
        const char *dir = in_output(tmpf("step-%08d", (int)seed));
        assert_int_equal(checkpoint_load(world, dir, k.tensors, CASE_TENSORS), OK);
        if (case_mistake(&k, (int64_t)seed)) fail_msg("seed %d: %s", (int)seed, case_mistake(&k, (int64_t)seed));
        case_close(&k);
    }
}

// ---- columns that are exchanged for rows --------------------------------------------------------------------
// Tensors of many blocks and of few rows, their columns cut unevenly; as many values as a float tells apart, or nearly.
enum { COLUMN_CUTS = 4 };
static const int64_t column_cuts[COLUMN_CUTS][2] = {{9000, 2048}, {3001, 1537}, {1, 40}, {3, 7}};

static float cut_value(int tensor, int64_t i)
{
    return (float)(i * 3 + tensor);
}

// pairs: two neighbouring ranks have the same columns, as data ranks have when they load.
static void open_cuts(CkptTensor *t, bool pairs, bool filled)
{
    static const char *const names[COLUMN_CUTS] = {"model/a", "model/b", "model/c", "optim/c/m"};
    for (int i = 0; i < COLUMN_CUTS; i++) {
        const int64_t rows = column_cuts[i][0], cols = column_cuts[i][1];
        const int parts = pairs ? (size + 1) / 2 : size, part = pairs ? rank / 2 : rank;
        t[i] = (CkptTensor){.name = names[i], .t = DT_F32, .shape = {rows, cols}, .rows = rows};
        t[i].col0 = cols * part * part / (parts * parts);
        t[i].cols = cols * (part + 1) * (part + 1) / (parts * parts) - t[i].col0;
        if (!t[i].cols) t[i].rows = 0;
        float *data = t[i].data = xcalloc((size_t)(rows * t[i].cols) + 1, sizeof(float));
        for (int64_t n = 0; filled && n < rows * t[i].cols; n++)
            data[n] = cut_value(i, n / t[i].cols * cols + t[i].col0 + n % t[i].cols);
    }
}

static int close_cuts(CkptTensor *t) // wrong values
{
    int wrong = 0;
    for (int i = 0; i < COLUMN_CUTS; i++) {
        const float *data = t[i].data;
        for (int64_t n = 0; n < t[i].rows * t[i].cols; n++)
            wrong += data[n] != cut_value(i, n / t[i].cols * t[i].shape[1] + t[i].col0 + n % t[i].cols);
        free(t[i].data);
    }
    return wrong;
}

static int save_cuts(int64_t step)
{
    CkptTensor t[COLUMN_CUTS];
    CkptMeta meta = {.step = step, .json = (char *)"{}"};
    open_cuts(t, false, true);
    int status = checkpoint_save(world, output, &meta, t, COLUMN_CUTS, 0);
    assert_int_equal(close_cuts(t), 0); // what is saved stays as it is
    return status;
}

static void test_columns(void **state)
{
    (void)state;
    CkptTensor t[COLUMN_CUTS];
    assert_int_equal(save_cuts(1), OK);
    for (int pairs = 0; pairs < 2; pairs++) {
        open_cuts(t, pairs, false);
        assert_int_equal(checkpoint_load(world, in_output("step-00000001"), t, COLUMN_CUTS), OK);
        assert_int_equal(close_cuts(t), 0);
    }
}

// Whoever fails, the others are not left waiting; and all hear of it.
static void limit_writes(rlim_t bytes);
static void test_columns_that_fail(void **state)
{
    (void)state;
    CkptTensor t[COLUMN_CUTS];
    signal(SIGXFSZ, SIG_IGN);
    for (int culprit = 0; culprit < size; culprit++) {
        if (rank == culprit) limit_writes(30000000 * (rlim_t)(culprit + 1) / (rlim_t)size);
        assert_int_equal(save_cuts(2), E_FAILED);
        if (rank == culprit) {
            limit_writes(RLIM_INFINITY);
            assert_non_null(strstr(error_last()->what, "File too large"));
        }
        error_clear();
        assert_string_equal(listing(), "");
    }
    assert_int_equal(save_cuts(2), OK);
    if (rank == 0) flip(in_output("step-00000002/state.h5"), 70000000, 2); // only one rank reads it
    comm_barrier(world);
    open_cuts(t, false, false);
    assert_int_equal(checkpoint_load(world, in_output("step-00000002"), t, COLUMN_CUTS), E_INPUT);
    error_clear();
    for (int i = 0; i < COLUMN_CUTS; i++) free(t[i].data);
}

// Parts that leave a gap, or lie over each other, are refused before anything is written.
static void test_parts_that_do_not_fit_together(void **state)
{
    (void)state;
    for (int over = 0; over < 2; over++) {
        Case k;
        case_open(&k, 1, rank, size);
        CkptMeta meta = {.step = 1, .json = (char *)"{}"};
        CkptTensor *t = &k.tensors[0];
        bool mine = rank == size - 1;
        if (mine && over)
            t->row0 = 0, t->rows = t->shape[0], t->data = xrealloc(t->data, 1 << 16);
        else if (mine)
            t->rows--;
        int status = checkpoint_save(world, output, &meta, k.tensors, CASE_TENSORS, 0);
        assert_int_equal(status, over && size == 1 ? OK : E_FAILED); // one rank alone cannot overlap
        if (status < 0 && rank == 0) assert_non_null(strstr(error_last()->what, "parts have"));
        error_clear();
        case_close(&k);
    }
    assert_int_equal(newest(), size == 1 ? 1 : -1);
}

// ---- resuming ---------------------------------------------------------------------------------------------
static int accept_step(void *ctx, const char *dir, const CkptMeta *meta)
{
    int64_t *seen = ctx;
    assert_non_null(strstr(dir, "/checkpoints/step-"));
    assert_string_equal(meta->json, "{\"recipe\": \"text\"}");
    *seen = meta->step;
    return meta->step == 66 ? (fail)(E_INPUT, dir, NULL, "another run's") : OK;
}

// Resumes into zeros; the step that was loaded, or the status.
static int64_t resume(int64_t *seen)
{
    Case k;
    char *dir;
    int64_t step;
    case_open(&k, -1, rank, size);
    *seen = -1;
    int status = checkpoint_resume(world, output, accept_step, seen, k.tensors, CASE_TENSORS, &step, &dir);
    if (status == OK && step >= 0) {
        if (case_mistake(&k, step)) fail_msg("%s", case_mistake(&k, step));
        assert_string_equal(dir, in_output(tmpf("step-%08d", (int)step)));
    } else {
        assert_null(dir);
    }
    free(dir);
    case_close(&k);
    return status < 0 ? status : step;
}

static void test_resuming(void **state)
{
    (void)state;
    int64_t seen;
    assert_int_equal(resume(&seen), -1); // nothing there
    assert_int_equal(seen, -1);
    assert_int_equal(save(3, 0), OK);
    assert_int_equal(save(8, 0), OK);
    assert_int_equal(resume(&seen), 8);
    assert_int_equal(seen, 8);
    if (rank == 0) flip(in_output("step-00000008/state.h5"), 3000000, 1); // a tensor: found while it is read
    comm_barrier(world);
    assert_int_equal(resume(&seen), 3);
    assert_int_equal(error_last()->code, OK);
    if (rank == 0)
        flip(in_output("step-00000008/state.h5"), 3000000, 1), flip(in_output("step-00000008/state.h5"), 40, 1);
    comm_barrier(world);
    assert_int_equal(resume(&seen), 3); // the file's structure
    if (rank == 0) flip(in_output("step-00000003/MANIFEST"), 60, 1);
    comm_barrier(world);
    assert_int_equal(resume(&seen), E_INPUT); // none is whole: not the same as none
    if (rank == 0) assert_non_null(strstr(error_last()->what, "none of the checkpoints"));
    error_clear();
}

// Another run's checkpoint is no damage: nothing older is taken in its place.
static void test_what_is_not_resumed(void **state)
{
    (void)state;
    Case k;
    int64_t seen, step;
    char *dir;
    assert_int_equal(save(3, 0), OK);
    assert_int_equal(save(66, 0), OK);
    assert_int_equal(resume(&seen), E_INPUT); // by its description
    assert_int_equal(seen, 66);
    if (rank == 0) assert_string_equal(error_last()->what, "another run's");
    error_clear();
    case_open(&k, -1, rank, size);
    const CkptTensor last = k.tensors[CASE_TENSORS - 1];
    for (int i = 0; i < 3; i++) { // a tensor that it has not, has otherwise, has and nobody asks for
        CkptTensor *t = &k.tensors[CASE_TENSORS - 1];
        *t = last;
        if (i == 0) t->name = "data/other";
        if (i == 1) t->t = DT_F32, t->rows = 0;
        const int n = i == 2 ? CASE_TENSORS - 1 : CASE_TENSORS;
        static const char *const what[] = {"no tensor data/other", "of type u8, not f32",
                                           "no place for the checkpoint's tensor data/seen"};
        assert_int_equal(checkpoint_resume(world, output, NULL, NULL, k.tensors, n, &step, &dir), E_INPUT);
        if (rank == 0 && !strstr(error_last()->what, what[i])) fail_msg("%s", error_last()->what);
        error_clear();
    }
    k.tensors[CASE_TENSORS - 1] = last;
    case_close(&k);
}

// ---- the reader of one process ----------------------------------------------------------------------------
// Some slab of the tensor, other ones for other numbers.
static void cut_somewhere(CkptTensor *t, uint64_t number)
{
    uint32_t u[4];
    philox(3, 0, number, u);
    t->row0 = u[0] % t->shape[0];
    t->rows = 1 + u[1] % (t->shape[0] - t->row0);
    if (number % 3 == 0) return; // whole rows
    t->col0 = u[2] % t->shape[1];
    t->cols = 1 + u[3] % (t->shape[1] - t->col0);
}

static void test_reading_slabs_alone(void **state)
{
    (void)state;
    CkptReader *r;
    assert_int_equal(save(4, 0), OK);
    assert_int_equal(checkpoint_open(&r, in_output("step-00000004")), OK);
    for (uint64_t i = 0; i < 40; i++) {
        Case k;
        case_open(&k, -1, 0, 1);
        for (int n = 0; n < CASE_TENSORS; n++) {
            CkptTensor found, *t = &k.tensors[n];
            assert_int_equal(checkpoint_find_tensor(r, t->name, &found), 1);
            assert_string_equal(found.name, t->name);
            assert_int_equal(found.t, t->t);
            assert_memory_equal(found.shape, t->shape, sizeof t->shape);
            if (i) cut_somewhere(t, i * CASE_TENSORS + (uint64_t)n);
            assert_int_equal(checkpoint_read(r, t), OK);
        }
        if (case_mistake(&k, 4)) fail_msg("%s", case_mistake(&k, 4));
        case_close(&k);
    }
    CkptMeta meta;
    assert_int_equal(checkpoint_read_meta(r, &meta), OK);
    assert_int_equal(meta.step, 4);
    assert_string_equal(meta.json, "{\"recipe\": \"text\"}");
    checkpoint_meta_free(&meta);
    checkpoint_close(r);
    checkpoint_close(NULL);
}

static void refused(CkptReader *r, const CkptTensor *t, const char *what)
{
    assert_int_equal(checkpoint_read(r, t), E_INPUT);
    if (!strstr(error_last()->what, what)) fail_msg("%s", error_last()->what);
    error_clear();
}

static void test_what_the_reader_refuses(void **state)
{
    (void)state;
    float data[64];
    CkptReader *r;
    CkptTensor found;
    const CkptTensor fits = {"model/norm.weight", DT_F32, {24, 1}, 0, 24, 0, 1, data};
    CkptTensor longer = fits, other = fits, absent = fits, none = fits;
    longer.shape[0] = 25;
    other.t = DT_I32;
    absent.name = "model/norm.bias";
    none.rows = 0, none.data = NULL;
    assert_int_equal(save(1, 0), OK);
    assert_int_equal(checkpoint_open(&r, in_output("step-00000001")), OK);
    assert_int_equal(checkpoint_find_tensor(r, "model/norm.bias", &found), 0);
    assert_int_equal(checkpoint_find_tensor(r, "meta/json", &found), 0);
    refused(r, &longer, "shape (24, 1)");
    refused(r, &other, "of type f32, not i32");
    refused(r, &absent, "no tensor model/norm.bias");
    assert_int_equal(checkpoint_read(r, &none), OK);
    checkpoint_close(r);
    assert_int_equal(checkpoint_open(&r, in_output("step-00000009")), E_INPUT);
    assert_null(r);
    error_clear();
}

// ---- damage -----------------------------------------------------------------------------------------------
static off_t bytes_of(const char *file)
{
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    return st.st_size;
}

// Every bit flip is found, in the tensors, in HDF5's own structure, and in the MANIFEST.
static void test_bit_flips(void **state)
{
    (void)state;
    if (size > 1) skip(); // verifying takes one process
    assert_int_equal(save(1, 0), OK);
    for (uint64_t i = 0; i < 600; i++) {
        uint32_t u[4];
        philox(1, 0, i, u);
        char *file = xasprintf("%s", in_output(i % 2 ? "step-00000001/state.h5" : "step-00000001/MANIFEST"));
        off_t reach = i % 4 == 1 ? 4096 : bytes_of(file); // a half of the flips in state.h5 in its first page
        off_t at = (off_t)(((uint64_t)u[0] << 32 | u[1]) % (uint64_t)reach);
        flip(file, at, u[2] % 8);
        if (checkpoint_verify(in_output("step-00000001")) != E_INPUT) fail_msg("%s: byte %lld", file, (long long)at);
        assert_true(*error_last()->what && *error_last()->place);
        error_clear();
        flip(file, at, u[2] % 8);
        free(file);
    }
    assert_int_equal(checkpoint_verify(in_output("step-00000001")), OK);
}

// And so is a file that was cut, anywhere.
static void test_truncations(void **state)
{
    (void)state;
    if (size > 1) skip();
    assert_int_equal(save(1, 0), OK);
    for (uint64_t i = 0; i < 200; i++) {
        uint32_t u[4];
        size_t bytes;
        char *whole, *file = xstrdup(in_output(i % 2 ? "step-00000001/state.h5" : "step-00000001/MANIFEST"));
        philox(2, 0, i, u);
        assert_int_equal(file_read(file, 1 << 24, &whole, &bytes), OK);
        off_t left = (off_t)(u[0] % bytes);
        if (i % 8 < 2) left = (off_t)bytes - 1 - u[1] % 30;
        assert_int_equal(truncate(file, left), 0);
        if (checkpoint_verify(in_output("step-00000001")) != E_INPUT) fail_msg("%s: %lld bytes", file, (long long)left);
        error_clear();
        int fd = open(file, O_WRONLY);
        assert_true(fd >= 0 && pwrite(fd, whole + left, bytes - (size_t)left, left) == (ssize_t)(bytes - (size_t)left));
        close(fd);
        free(whole);
        free(file);
    }
    assert_int_equal(checkpoint_verify(in_output("step-00000001")), OK);
}

// The place in the file where the bytes of the step's tensor `name` begin.
static off_t offset_of(const char *name)
{
    char *text, *line;
    long long offset;
    assert_int_equal(file_read(in_output("step-00000002/MANIFEST"), 1 << 20, &text, NULL), OK);
    line = strstr(text, tmpf(" %s\n", name));
    assert_non_null(line);
    while (line > text && line[-1] != '\n') line--;
    assert_int_equal(sscanf(line, "tensor %lld", &offset), 1);
    free(text);
    return offset;
}

static void test_damage_is_named_and_the_previous_step_used(void **state)
{
    (void)state;
    assert_int_equal(save(1, 0), OK);
    assert_int_equal(save(2, 0), OK);
    loads(2); // known as whole: the change must be noticed all the same
    if (rank == 0) {
        flip(in_output("step-00000002/state.h5"), offset_of("model/norm.weight") + 5, 3);
        assert_int_equal(checkpoint_verify(in_output("step-00000002")), E_INPUT);
        assert_non_null(strstr(error_last()->what, "tensor model/norm.weight"));
        error_clear();
    }
    comm_barrier(world);
    Case k;
    case_open(&k, -1, rank, size);
    assert_int_equal(checkpoint_load(world, in_output("step-00000002"), k.tensors, CASE_TENSORS), E_INPUT);
    error_clear();
    case_close(&k);
    assert_int_equal(newest(), 1);
    assert_int_equal(error_last()->code, OK);
    loads(1);
}

static void cut_state(void)
{
    assert_int_equal(truncate(in_output("step-00000002/state.h5"), 5000), 0);
}
static void empty_state(void)
{
    assert_int_equal(truncate(in_output("step-00000002/state.h5"), 0), 0);
}
static void lose_state(void)
{
    assert_int_equal(unlink(in_output("step-00000002/state.h5")), 0);
}
static void lose_manifest(void)
{
    assert_int_equal(unlink(in_output("step-00000002/MANIFEST")), 0);
}
static void empty_manifest(void)
{
    assert_int_equal(truncate(in_output("step-00000002/MANIFEST"), 0), 0);
}
static void cut_manifest(void)
{
    const char *file = in_output("step-00000002/MANIFEST");
    assert_int_equal(truncate(file, bytes_of(file) - 22), 0); // the last line and the newline before it
}
static void swap_state(void)
{
    char *one = xstrdup(in_output("step-00000001/state.h5"));
    assert_int_equal(renameat2(AT_FDCWD, one, AT_FDCWD, in_output("step-00000002/state.h5"), RENAME_EXCHANGE), 0);
    assert_int_equal(rename(in_output("step-00000002/state.h5"), one), 0); // step 1 is whole again
    free(one);
}
static void grow_state(void)
{
    int fd = open(in_output("step-00000002/state.h5"), O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
}

// Damage is found in what is read, by the block; the rest of the file can still be had.
static void test_the_reader_names_damage(void **state)
{
    (void)state;
    Case k;
    CkptReader *r;
    assert_int_equal(save(2, 0), OK);
    if (rank == 0) flip(in_output("step-00000002/state.h5"), offset_of("model/embed.weight") + (4 << 20) + 9, 0);
    comm_barrier(world);
    case_open(&k, -1, 0, 1);
    assert_int_equal(checkpoint_open(&r, in_output("step-00000002")), OK);
    for (int i = 0; i < CASE_TENSORS; i++) {
        CkptTensor t = k.tensors[i];
        if (!streq(t.name, "model/embed.weight")) {
            assert_int_equal(checkpoint_read(r, &t), OK);
            continue;
        }
        refused(r, &t, "damaged: tensor model/embed.weight");
        refused(r, &t, "damaged: tensor model/embed.weight"); // what was read of it is not kept
        t.rows = (4 << 20) / (2048 * 4);
        assert_int_equal(checkpoint_read(r, &t), OK);
        t.row0 = t.rows, t.rows = 1, t.col0 = 2047, t.cols = 1;
        refused(r, &t, "damaged: tensor model/embed.weight");
    }
    checkpoint_close(r);
    case_close(&k);
    comm_barrier(world);
    if (rank == 0) flip(in_output("step-00000002/MANIFEST"), 40, 1);
    comm_barrier(world);
    assert_int_equal(checkpoint_open(&r, in_output("step-00000002")), E_INPUT);
    assert_non_null(strstr(error_last()->place, "MANIFEST"));
    error_clear();
    comm_barrier(world);
    if (rank == 0) cut_state();
    if (rank == 0) flip(in_output("step-00000002/MANIFEST"), 40, 1);
    comm_barrier(world);
    assert_int_equal(checkpoint_open(&r, in_output("step-00000002")), E_INPUT);
    assert_non_null(strstr(error_last()->what, "5000 bytes, its MANIFEST says"));
    error_clear();
}

static void test_lost_and_cut_files(void **state)
{
    (void)state;
    void (*const deeds[])(void) = {cut_state,      empty_state,  lose_state, lose_manifest,
                                   empty_manifest, cut_manifest, swap_state, grow_state};
    assert_int_equal(save(1, 0), OK);
    for (size_t i = 0; i < COUNT_OF(deeds); i++) {
        if (rank == 0) remove_tree(in_output("step-00000002"));
        comm_barrier(world);
        assert_int_equal(save(2, 0), OK);
        assert_int_equal(newest(), 2);
        comm_barrier(world);
        if (rank == 0) deeds[i]();
        comm_barrier(world);
        assert_int_equal(newest(), 1);
    }
}

// A step under another step's name would be resumed at the wrong place.
static void test_a_renamed_step_is_not_believed(void **state)
{
    (void)state;
    assert_int_equal(save(1, 0), OK);
    assert_int_equal(save(2, 0), OK);
    comm_barrier(world);
    if (rank == 0) {
        char *from = xstrdup(in_output("step-00000002"));
        assert_int_equal(rename(from, in_output("step-00000009")), 0);
        free(from);
    }
    comm_barrier(world);
    assert_int_equal(newest(), 1);
}

// ---- saves that fail --------------------------------------------------------------------------------------
// One rank cannot write beyond a limit: a full disk, as far as the program can tell.
static void limit_writes(rlim_t bytes)
{
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void test_a_failed_write_leaves_nothing(void **state)
{
    (void)state;
    static const rlim_t limits[] = {0, 100, 3000, 20000, 2000000};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(save(1, 0), OK);
    for (int culprit = 0; culprit < size; culprit += MAX(size - 1, 1)) // the first and the last
        for (size_t i = 0; i < COUNT_OF(limits); i++) {
            if (rank == culprit) limit_writes(limits[i]);
            int status = save(2, 0);
            if (rank == culprit) limit_writes(RLIM_INFINITY);
            if (status == OK) { // the culprit's parts lie below the limit
                assert_true(culprit > 0);
                if (rank == 0) remove_tree(in_output("step-00000002"));
            } else if (rank == culprit) {
                assert_non_null(strstr(error_last()->what, "File too large"));
            }
            if (culprit == 0) assert_int_equal(status, E_FAILED);
            error_clear();
            assert_string_equal(listing(), "step-00000001");
            assert_int_equal(newest(), 1);
        }
    assert_int_equal(save(2, 0), OK);
    loads(2);
}

static void test_the_directory_cannot_be_made(void **state)
{
    (void)state;
    if (rank == 0) assert_int_equal(file_write_atomic(tmpf("%s/checkpoints", output), "a file", 6), OK);
    comm_barrier(world);
    assert_true(save(1, 0) < 0);
    if (rank == 0) assert_non_null(strstr(error_last()->what, "not a directory"));
    error_clear();
}

// What a killed run has left is removed by the next save, and never taken for a step.
static void test_leftovers(void **state)
{
    (void)state;
    if (rank == 0) {
        assert_int_equal(make_dirs(in_output(".tmp-step-00000004/deep")), OK);
        assert_int_equal(make_dirs(in_output(".del-step-00000003")), OK);
        assert_int_equal(make_dirs(in_output("step-5")), OK);
        assert_int_equal(make_dirs(in_output("step-000000006")), OK);
        assert_int_equal(make_dirs(in_output("step-00000007x")), OK);
    }
    comm_barrier(world);
    assert_int_equal(newest(), -1);
    assert_int_equal(save(4, 1), OK);
    assert_string_equal(listing(), "step-000000006 step-00000004 step-00000007x step-5");
}

// ---- which steps stay -------------------------------------------------------------------------------------
static void test_the_newest_stay(void **state)
{
    (void)state;
    for (int64_t step = 1; step <= 4; step++) assert_int_equal(save(step * 10, 2), OK);
    assert_string_equal(listing(), "step-00000030 step-00000040");
    assert_int_equal(save(50, 0), OK);
    assert_string_equal(listing(), "step-00000030 step-00000040 step-00000050");
    assert_int_equal(save(60, 1), OK);
    assert_string_equal(listing(), "step-00000060");
    loads(60);
}

// A step that is not whole does not count as one of the kept.
static void test_damaged_steps_do_not_count(void **state)
{
    (void)state;
    for (int64_t step = 1; step <= 3; step++) assert_int_equal(save(step, 0), OK);
    if (rank == 0) assert_int_equal(unlink(in_output("step-00000003/MANIFEST")), 0);
    comm_barrier(world);
    assert_int_equal(save(4, 2), OK);
    assert_string_equal(listing(), "step-00000002 step-00000003 step-00000004");
}

// The run went back and comes by again: the new one takes the place of the old.
static void test_a_step_is_replaced(void **state)
{
    (void)state;
    Case k;
    assert_int_equal(save(1, 2), OK);
    case_open(&k, 99, rank, size); // other values under the same step
    CkptMeta meta = {.step = 1, .json = (char *)"{}"};
    assert_int_equal(checkpoint_save(world, output, &meta, k.tensors, CASE_TENSORS, 2), OK);
    case_close(&k);
    assert_string_equal(listing(), "step-00000001");
    case_open(&k, -1, rank, size);
    assert_int_equal(checkpoint_load(world, in_output("step-00000001"), k.tensors, CASE_TENSORS), OK);
    assert_null(case_mistake(&k, 99));
    case_close(&k);
    assert_int_equal(newest(), 1);
}

// ---- frame ------------------------------------------------------------------------------------------------
static int open_output(void **state)
{
    (void)state;
    error_clear(); // of a test that failed
    char path[] = "/tmp/attune-test-XXXXXX";
    void *data = path;
    size_t bytes = sizeof path;
    if (rank == 0 && !mkdtemp(path)) return -1;
    if (comm_broadcast_blob(world, &data, &bytes, 0) < 0) return -1;
    output = xstrdup(data);
    if (rank) free(data);
    return 0;
}

static int remove_output(void **state)
{
    (void)state;
    comm_barrier(world);
    if (rank == 0) remove_tree(output);
    free(output);
    return 0;
}

static int open_world(void **state)
{
    (void)state;
    setenv("ATTUNE_COMM_TIMEOUT", "60", 0); // a rank that failed an assertion leaves the others waiting
    if (comm_open(&world, &(CommConfig){.kind = "auto"}) < 0) return -1;
    rank = comm_rank(world);
    size = comm_size(world);
    log_set_rank(rank, size);
    return 0;
}

static int close_world(void **state)
{
    (void)state;
    comm_close(world);
    return 0;
}

#define IN_OUTPUT(f) cmocka_unit_test_setup_teardown(f, open_output, remove_output)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_OUTPUT(test_nothing_yet),
        IN_OUTPUT(test_save_and_load),
        IN_OUTPUT(test_measured),
        IN_OUTPUT(test_list),
        IN_OUTPUT(test_random_grids),
        IN_OUTPUT(test_columns),
        IN_OUTPUT(test_columns_that_fail),
        IN_OUTPUT(test_parts_that_do_not_fit_together),
        IN_OUTPUT(test_resuming),
        IN_OUTPUT(test_what_is_not_resumed),
        IN_OUTPUT(test_reading_slabs_alone),
        IN_OUTPUT(test_what_the_reader_refuses),
        IN_OUTPUT(test_the_reader_names_damage),
        IN_OUTPUT(test_what_does_not_fit),
        IN_OUTPUT(test_bit_flips),
        IN_OUTPUT(test_truncations),
        IN_OUTPUT(test_damage_is_named_and_the_previous_step_used),
        IN_OUTPUT(test_lost_and_cut_files),
        IN_OUTPUT(test_a_renamed_step_is_not_believed),
        IN_OUTPUT(test_a_failed_write_leaves_nothing),
        IN_OUTPUT(test_the_directory_cannot_be_made),
        IN_OUTPUT(test_leftovers),
        IN_OUTPUT(test_the_newest_stay),
        IN_OUTPUT(test_damaged_steps_do_not_count),
        IN_OUTPUT(test_a_step_is_replaced),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
