// runtime/inspect.c, facts.c, tensor_table.c and data/describe.c: each kind of thing is recognised and told;
// unknown and broken ones are errors that say so.
#define _GNU_SOURCE
#include "facts.h"
#include "io/checkpoint.h"
#include "io/weights.h"
#include "runtime.h"
#include "tensor_table.h"
#include <ftw.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h> // last: its fail() hides ours

// ---- helpers ----------------------------------------------------------------------------------------------
static char dir[64];

static const char *in_dir(const char *name)
{
    return tmpf("%s/%s", dir, name);
}

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir, "/tmp/attune-inspect-XXXXXX");
    error_clear();
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static int remove_dir(void **state)
{
    (void)state;
    return nftw(dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void put_file(const char *name, const char *text)
{
    FILE *f = fopen(in_dir(name), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

// What run_inspect prints
static char *inspect(const char *path, bool json, int *status)
{
    char *text;
    size_t bytes;
    const char *file = "/tmp/attune-inspect-out";
    char *out = xasprintf("%s-%d", file, (int)getpid());
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    assert_non_null(freopen(out, "w", stdout));
    *status = run_inspect(path, json);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    ErrorRecord kept = *error_last();
    error_clear();
    assert_int_equal(file_read(out, 1 << 24, &text, &bytes), OK);
    error_adopt(&kept);
    unlink(out);
    free(out);
    return text;
}

static json_t *inspect_json(const char *path)
{
    int status;
    char *text = inspect(path, true, &status);
    if (status != OK) fail_msg("%s: %s", error_last()->place, error_last()->what);
    json_t *j = json_loads(text, 0, NULL);
    assert_non_null(j);
    free(text);
    return j;
}

static void expect_error(const char *path, const char *what)
{
    int status;
    free(inspect(path, false, &status));
    assert_int_equal(status, E_INPUT);
    if (!strstr(error_last()->what, what)) fail_msg("\"%s\" has no \"%s\"", error_last()->what, what);
    error_clear();
}

static const char *text_of(const json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}
static json_int_t number_of(const json_t *j, const char *key)
{
    return json_integer_value(json_object_get(j, key));
}

static int zeros(void *ctx, int64_t row0, int64_t rows, void *dst)
{
    (void)row0;
    memset(dst, 0, (size_t)rows * *(size_t *)ctx);
    return OK;
}

// Two layers of a (4, 8) matrix and a (4) vector, and one matrix outside
static void write_tensors(const char *path, const char *pattern)
{
    static size_t matrix_row = 8 * 2, element = 4;
    char names[4][96];
    TensorOut t[5];
    for (int i = 0; i < 4; i++) {
        snprintf(names[i], sizeof names[i], i < 2 ? "%s.%d.proj.weight" : "%s.%d.norm.weight", pattern, i % 2);
        t[i] = i < 2 ? (TensorOut){names[i], DT_BF16, 2, {4, 8}, zeros, &matrix_row}
                     : (TensorOut){names[i], DT_F32, 1, {4}, zeros, &element};
    }
    t[4] = (TensorOut){"embed.weight", DT_BF16, 2, {6, 8}, zeros, &matrix_row};
    assert_int_equal(safetensors_write(path, t, 5), OK);
}

// ---- tensor table -----------------------------------------------------------------------------------------
static void table_groups(void **state)
{
    (void)state;
    TensorTable *t = tensor_table_open();
    for (int l = 11; l >= 0; l--) {
        tensor_table_add(t, tmpf("model.layers.%d.q.weight", l), l < 2 ? "F32" : "BF16", (int64_t[]){3, 5}, 2, 30);
        tensor_table_add(t, tmpf("model.layers.%d.experts.%d.up", l % 3, l / 3), "BF16", (int64_t[]){7}, 1, 14);
    }
    tensor_table_add(t, "h.7.w2.bias", "F32", (int64_t[]){1}, 1, 4);
    tensor_table_add(t, "scalar", "F32", NULL, 0, 4);
    tensor_table_add(t, "a.123456789012.b/4/#", "F32", (int64_t[]){2}, 1, 8);
    json_t *rows = tensor_table_json(t), *types = tensor_table_types(t);
    assert_int_equal(json_array_size(rows), 6);
    assert_string_equal(text_of(json_array_get(rows, 0), "name"), "model.layers.{2..11}.q.weight");
    assert_int_equal(number_of(json_array_get(rows, 0), "count"), 10);
    assert_string_equal(text_of(json_array_get(rows, 1), "name"), "model.layers.{0..2}.experts.{0..3}.up");
    assert_string_equal(text_of(json_array_get(rows, 2), "name"),
                        "model.layers.{0..1}.q.weight"); // other type: other line
    assert_string_equal(text_of(json_array_get(rows, 3), "name"), "h.7.w2.bias");
    assert_string_equal(text_of(json_array_get(rows, 5), "name"), "a.123456789012.b/4/#"); // too long for a number
    assert_int_equal(tensor_table_elements(t), 12 * 15 + 12 * 7 + 1 + 1 + 2);
    assert_int_equal(tensor_table_bytes(t), 12 * 30 + 12 * 14 + 16);
    assert_int_equal(json_array_size(types), 2);
    assert_int_equal(number_of(json_array_get(types, 0), "tensors"), 22); // BF16
    json_decref(rows);
    json_decref(types);
    tensor_table_free(t);
    tensor_table_free(NULL);
}

// ---- kinds ------------------------------------------------------------------------------------------------
static void model_directory(void **state)
{
    (void)state;
    write_tensors(in_dir("model.safetensors"), "model.layers");
    put_file("config.json",
             "{\"architectures\": [\"OtherModel\"], \"hidden_size\": 8, \"tie_word_embeddings\": true, \"x\": 1}");
    json_t *j = inspect_json(dir);
    assert_string_equal(text_of(j, "kind"), "model");
    assert_int_equal(number_of(j, "parameters"), 2 * 32 + 2 * 4 + 48);
    assert_int_equal(number_of(j, "weight_bytes"), 2 * 64 + 2 * 16 + 96);
    assert_int_equal(number_of(json_object_get(j, "config"), "hidden_size"), 8);
    assert_null(json_object_get(json_object_get(j, "config"), "x"));
    assert_non_null(strstr(text_of(j, "attune"), "OtherModel")); // not trainable, and why
    assert_int_equal(json_array_size(json_object_get(j, "tensors")), 3);
    json_decref(j);
    int status;
    char *text = inspect(dir, false, &status);
    assert_int_equal(status, OK);
    assert_non_null(strstr(text, "  model.layers.{0..1}.proj.weight  [4, 8]  BF16      2  128 B\n"));
    assert_non_null(strstr(text, "tie_word_embeddings yes"));
    free(text);
}

static void one_safetensors_file(void **state)
{
    (void)state;
    write_tensors(in_dir("x.safetensors"), "blocks");
    json_t *j = inspect_json(in_dir("x.safetensors"));
    assert_string_equal(text_of(j, "kind"), "tensors");
    assert_int_equal(number_of(j, "parameters"), 120);
    json_decref(j);
    put_file("cut.safetensors", "\x40\x00");
    int status;
    free(inspect(in_dir("cut.safetensors"), false, &status));
    assert_int_equal(status, E_INPUT);
    error_clear();
}

static void adapter(void **state)
{
    (void)state;
    write_tensors(in_dir("adapter_model.safetensors"), "base_model.model.model.layers");
    put_file("adapter_config.json",
             "{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8, \"use_rslora\": true, \"lora_dropout\": 0.0, "
             "\"base_model_name_or_path\": \"some/base\", \"target_modules\": [\"q_proj\", \"v_proj\"]}");
    json_t *j = inspect_json(dir);
    assert_string_equal(text_of(j, "kind"), "adapter");
    assert_string_equal(text_of(j, "variant"), "rslora");
    assert_string_equal(text_of(j, "base_model"), "some/base");
    assert_float_equal(json_number_value(json_object_get(j, "scale")), 4, 1e-12); // 8 / sqrt(4)
    assert_int_equal(json_array_size(json_object_get(j, "targets")), 2);
    json_decref(j);
    unlink(in_dir("adapter_model.safetensors"));
    int status;
    free(inspect(dir, false, &status));
    assert_int_equal(status, E_INPUT);
    error_clear();
}

static void dataset(void **state)
{
    (void)state;
    put_file(
        "a.jsonl",
        "{\"prompt\": \"p\", \"completion\": \"c\"}\n\n{\"prompt\": \"p\", \"completion\": \"longer\", \"id\": 3}\n");
    json_t *j = inspect_json(in_dir("a.jsonl"));
    assert_string_equal(text_of(j, "kind"), "dataset");
    assert_string_equal(text_of(j, "format"), "completion");
    assert_int_equal(number_of(j, "rows"), 2);
    assert_int_equal(number_of(j, "file_bytes"), 85);
    assert_int_equal(number_of(json_object_get(j, "keys"), "prompt"), 2);
    assert_int_equal(number_of(json_object_get(j, "keys"), "id"), 1);
    json_decref(j);
    put_file("b.jsonl", "{\"prompt\": \"p\", \"chosen\": \"c\", \"rejected\": \"r\"}");
    j = inspect_json(in_dir("b.jsonl"));
    assert_string_equal(text_of(j, "format"), "preferences");
    json_decref(j);
    put_file("c.jsonl", "{\"a\": 1}\n{\"a\": \n");
    int status;
    free(inspect(in_dir("c.jsonl"), false, &status));
    assert_int_equal(status, E_INPUT);
    assert_non_null(strstr(error_last()->place, "c.jsonl:2"));
    error_clear();
    put_file("d.jsonl", "\n");
    expect_error(in_dir("d.jsonl"), "no rows");
}

static void save_checkpoint(int64_t step)
{
    Comm *self;
    float w[6] = {1, 2, 3, 4, 5, 6}, m[3] = {0};
    CkptTensor t[] = {
        {.name = "adapter/layers.0.w", .t = DT_F32, .shape = {2, 3}, .rows = 2, .cols = 3, .data = w},
        {.name = "optim/layers.0.w/m", .t = DT_F32, .shape = {3, 1}, .rows = 3, .cols = 1, .data = m},
    };
    CkptMeta meta = {.step = step, .json = "{\"method\": \"lora\", \"recipe\": \"long\"}"};
    assert_int_equal(comm_open(&self, &(CommConfig){.kind = "self"}), OK);
    assert_int_equal(checkpoint_save(self, dir, &meta, t, 2, 0), OK);
    comm_close(self);
}

static void damage(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    int c = fgetc(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    fputc(c ^ 1, f);
    fclose(f);
}

static void checkpoint(void **state)
{
    (void)state;
    save_checkpoint(7);
    char *step = xstrdup(in_dir("checkpoints/step-00000007")), *file = xasprintf("%s/state.h5", step);
    for (int k = 0; k < 2; k++) { // the directory, or its file
        json_t *j = inspect_json(k ? file : step);
        assert_string_equal(text_of(j, "kind"), "checkpoint");
        assert_int_equal(number_of(j, "step"), 7);
        assert_string_equal(text_of(j, "method"), "lora");
        assert_null(json_object_get(j, "recipe"));
        assert_int_equal(number_of(j, "parameters"), 9);
        assert_int_equal(json_array_size(json_object_get(j, "tensors")), 2);
        json_decref(j);
    }
    damage(file, -1);
    int status;
    free(inspect(step, false, &status));
    assert_int_equal(status, E_INPUT);
    error_clear();
    free(step);
    free(file);
}

static void run_directory(void **state)
{
    (void)state;
    save_checkpoint(2);
    save_checkpoint(4);
    put_file("status.json", "{\"state\": \"completed\", \"code\": 0, \"step\": 4, \"reason\": \"\"}");
    put_file("metrics.jsonl",
             "{\"step\": 3, \"loss\": 2.5}\n{\"step\": 4, \"loss\": 2.25}\n{\"step\": 4, \"eval/loss\": 1}\n{\"st");
    put_file("report.html", "");
    json_t *j = inspect_json(dir);
    assert_string_equal(text_of(j, "kind"), "run");
    assert_string_equal(text_of(j, "state"), "completed");
    assert_float_equal(json_real_value(json_object_get(json_object_get(j, "last_metrics"), "loss")), 2.25, 0);
    const json_t *points = json_object_get(j, "checkpoints");
    assert_int_equal(json_array_size(points), 2);
    assert_string_equal(text_of(json_array_get(points, 1), "name"), "step-00000004");
    assert_string_equal(text_of(json_array_get(points, 1), "checksums"), "match");
    json_decref(j);
    damage(in_dir("checkpoints/step-00000002/state.h5"), -1);
    int status; // the damage is the status, and the rest is still told
    char *text = inspect(dir, false, &status);
    assert_int_equal(status, E_INPUT);
    assert_non_null(strstr(text, "completed"));
    assert_non_null(strstr(text, "match\n"));
    free(text);
    error_clear();
}

static void unknown_things(void **state)
{
    (void)state;
    expect_error(in_dir("absent"), "no such file");
    expect_error(dir, "not something that attune knows");
    put_file("notes.txt", "hello");
    expect_error(in_dir("notes.txt"), "not something that attune knows");
    put_file("r.yaml", "method: lora");
    int status;
    free(inspect(in_dir("r.yaml"), false, &status));
    assert_non_null(strstr(error_last()->hint, "attune plan"));
    error_clear();
    put_file("other.h5", "\x89HDF\r\n\x1a\n");
    expect_error(in_dir("other.h5"), "not a checkpoint");
}

// Texts of foreign files do not reach the terminal's control sequences, nor does depth the stack
static void facts_are_tame(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    json_t *deep = json_string("end");
    for (int i = 0; i < 200; i++) deep = json_pack("[o]", deep);
    json_t *facts = json_pack("{s:s, s:[s, s], s:o, s:I, s:[{s:s, s:i}]}", "a", "x\033[2J\ny", "list", "p", "q", "deep",
                              deep, "parameters", (json_int_t)134515008, "table", "name", "n\007", "count", 3);
    facts_print(facts, f);
    fclose(f);
    assert_null(strchr(text, '\033'));
    assert_null(strchr(text, '\007'));
    assert_non_null(strstr(text, "x?[2J?y"));
    assert_non_null(strstr(text, "p, q\n"));
    assert_non_null(strstr(text, "134.5 M\n"));
    assert_non_null(strstr(text, "\ntable\n  name  count\n  n?        3\n"));
    json_decref(facts);
    free(text);
}

int main(void)
{
#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_groups),
        IN_DIR(model_directory),
        IN_DIR(one_safetensors_file),
        IN_DIR(adapter),
        IN_DIR(dataset),
        IN_DIR(checkpoint),
        IN_DIR(run_directory),
        IN_DIR(unknown_things),
        cmocka_unit_test(facts_are_tame),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
