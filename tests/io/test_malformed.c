// runtime/io: files that are damaged, cut short or lie about themselves are E_INPUT with a message that says where and what.
// safetensors headers are written out; GGUF files are put together field by field, so that each case changes one of them.
#include "io_test.h"

// ---- safetensors: header text, data bytes after it ------------------------------------------------------------------
typedef struct HeaderCase {
    const char *header;
    int data_bytes;
    const char *telling;
} HeaderCase;

#define T(dtype, shape, begin, end)                                                                                    \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
#define GOOD T("F32", "[2,2]", 0, 16)

static const HeaderCase headers[] = {
    // JSON
    {"{\"a\":" GOOD, 16, "the header is no JSON"},
    {"[" GOOD "]", 16, "does not start with {"},
    {" {\"a\":" GOOD "}", 16, "does not start with {"},
    {"{\"a\":" GOOD ",\"a\":" GOOD "}", 16, "no JSON: duplicate object key"},
    {"{\"a\":" GOOD "} x", 16, "no JSON"},
    {"{\"\xff\":" GOOD "}", 16, "no JSON"},
    {"{\"a\\u0000\":" GOOD "}", 16, "no JSON"},
    {"{\"a\\ud800\":" GOOD "}", 16, "no JSON"},
    {"{\"a\\u001b[31m\":" GOOD "}", 16, "name of tensor 0"},
    {"{\"\":" GOOD "}", 16, "name of tensor 0"},
    // an entry's form
    {"{\"a\":1}", 0, "tensor a: its header entry is not {dtype, shape, data_offsets}"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor a: its header entry is not"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
     "tensor a: its header entry is not"},
    {"{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor a: its header entry is not"},
    {"{\"a\":" T("F33", "[2,2]", 0, 16) "}", 16, "tensor a: unknown dtype \"F33\""},
    {"{\"a\":" T("Q4_0", "[32]", 0, 18) "}", 18, "tensor a: unknown dtype \"Q4_0\""},
    // shapes
    {"{\"a\":" T("F32", "4", 0, 16) "}", 16, "tensor a: shape is not an array"},
    {"{\"a\":" T("F32", "[2,-2]", 0, 16) "}", 16, "tensor a: dimension 1 of its shape"},
    {"{\"a\":" T("F32", "[2.0,2]", 0, 16) "}", 16, "tensor a: dimension 0 of its shape"},
    {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,2,2]", 0, 16) "}", 16, "tensor a: 9 dimensions"},
    {"{\"a\":" T("F32", "[4294967296,4294967296]", 0, 16) "}", 16, "tensor a: the product of its dimensions overflows"},
    {"{\"a\":" T("F32", "[4294967296,4294967297,0]", 0, 0) "}", 0, "tensor a: the product of its dimensions overflows"},
    {"{\"a\":" T("F32", "[4611686018427387905]", 0, 4) "}", 4, "tensor a: its size in bytes overflows"},
    {"{\"a\":" T("F32", "[99999999999999999999]", 0, 16) "}", 16, "no JSON: too big integer"},
    {"{\"a\":" T("F4", "[3]", 0, 2) "}", 2, "tensor a: rows of 3 elements"},
    // offsets
    {"{\"a\":" T("F32", "[2,2]", 0, 12) "}", 12, "tensor a: needs 16 bytes"},
    {"{\"a\":" T("F32", "[3]", 0, 16) "}", 16, "tensor a: data_offsets spans 16 bytes, its dtype and shape need 12"},
    {"{\"a\":" T("F32", "[2,2]", 16, 0) "}", 16, "tensor a: data_offsets is not [begin, end]"},
    {"{\"a\":" T("F32", "[2,2]", -16, 0) "}", 16, "tensor a: data_offsets is not [begin, end]"},
    {"{\"a\":" T("F32", "[2,2]", 0.0, 16) "}", 16, "tensor a: data_offsets is not [begin, end]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4,
     "tensor a: data_offsets is not [begin, end]"},
    {"{\"a\":" T("F32", "[2,2]", 9223372036854775791, 9223372036854775807) "}", 16, "tensor a: needs 16 bytes"},
    {"{\"a\":" GOOD "}", 12, "tensor a: needs 16 bytes"},
    {"{\"a\":" GOOD "}", 20, "its tensors end at byte"},
    {"{\"a\":" T("F32", "[2,2]", 4, 20) "}", 20, "tensor a: leaves a hole"},
    {"{\"a\":" GOOD ",\"b\":" T("F32", "[1]", 20, 24) "}", 24, "tensor b: leaves a hole after"},
    {"{\"a\":" GOOD ",\"b\":" T("F32", "[1]", 12, 16) "}", 16, "tensor b: overlaps"},
    {"{\"a\":" GOOD ",\"b\":" GOOD "}", 16, "tensor b: overlaps"},
    {"{}", 1, "its tensors end at byte 10, the file at 11"},
    // metadata
    {"{\"__metadata__\":[],\"a\":" GOOD "}", 16, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"n\":1},\"a\":" GOOD "}", 16, "a value of __metadata__ is not a string"},
};

static void put_safetensors(const char *name, const char *header, uint64_t length, int data_bytes)
{
    Buf b = {0};
    for (int i = 0; i < 8; i++) buf_put(&b, &(char){(char)(length >> (8 * i))}, 1);
    buf_puts(&b, header);
    for (int i = 0; i < data_bytes; i++) buf_put(&b, "\0", 1);
    scratch_put(name, b.data, b.len);
    buf_free(&b);
}

static void assert_refused(const char *name, const char *telling)
{
    char *path = scratch_path(name);
    Weights *w = NULL;
    assert_input_error(weights_open(&w, path), telling, telling);
    free(path);
}

static void test_safetensors_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(headers); i++) {
        put_safetensors("t.safetensors", headers[i].header, strlen(headers[i].header), headers[i].data_bytes);
        assert_refused("t.safetensors", headers[i].telling);
    }
}

static void test_safetensors_lengths(void **state)
{
    (void)state;
    static const char header[] = "{\"a\":" GOOD "}";
    static const uint64_t lengths[] = {0, 1, sizeof header + 16, 100000001, UINT64_MAX, UINT64_MAX - 7, 1ull << 63};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        put_safetensors("t.safetensors", header, lengths[i], 16);
        assert_refused("t.safetensors", "header of");
    }
    scratch_put("t.safetensors", "", 0);
    assert_refused("t.safetensors", "0 bytes are no safetensors file");
    scratch_put("t.safetensors", "\2\0\0\0\0\0\0\0", 8);
    assert_refused("t.safetensors", "8 bytes are no safetensors file");
}

static void test_safetensors_cut_anywhere(void **state)
{
    (void)state;
    char *data;
    size_t bytes;
    assert_int_equal(file_read(GOLDEN "dtypes/f32.safetensors", 1 << 20, &data, &bytes), OK);
    for (size_t n = 0; n < bytes; n++) {
        scratch_put("t.safetensors", data, n);
        assert_refused("t.safetensors", "t.safetensors");
    }
    free(data);
}

// ---- directories and other files ------------------------------------------------------------------------------------
static void make_shards(const char *index)
{
    static const char one[] = "{\"a\":" GOOD "}", two[] = "{\"b\":" GOOD "}";
    char *dir = scratch_path("shards");
    assert_int_equal(make_dirs(dir), OK);
    put_safetensors("shards/1.safetensors", one, strlen(one), 16);
    put_safetensors("shards/2.safetensors", two, strlen(two), 16);
    put_safetensors("shards/again.safetensors", one, strlen(one), 16);
    scratch_put("shards/model.safetensors.index.json", index, strlen(index));
    free(dir);
}

static void test_indexes(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"{\"weight_map\":{\"a\":\"1.safetensors\",", "model.safetensors.index.json:1: no JSON"},
        {"[]", "weight_map is not an object"},
        {"{\"weight_map\":{}}", "weight_map is not an object"},
        {"{\"weight_map\":[\"1.safetensors\"]}", "weight_map is not an object"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"2.safetensors\"}}", "duplicate object key"},
        {"{\"weight_map\":{\"a\":1}}", "no plain .safetensors file name"},
        {"{\"weight_map\":{\"a\":\"../1.safetensors\"}}", "no plain .safetensors file name"},
        {"{\"weight_map\":{\"a\":\"/etc/1.safetensors\"}}", "no plain .safetensors file name"},
        {"{\"weight_map\":{\"a\":\"x\\\\1.safetensors\"}}", "no plain .safetensors file name"},
        {"{\"weight_map\":{\"a\":\".safetensors\"}}", "no plain .safetensors file name"},
        {"{\"weight_map\":{\"a\":\"passwd\"}}", "no plain .safetensors file name"},
        {"{\"weight_map\":{\"a\":\"3.safetensors\"}}", "3.safetensors: cannot open"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"1.safetensors\"}}", "says that 1.safetensors holds c"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\"}}", "says that 1.safetensors holds b"},
        {"{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", "which is not so"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"x\":\"again.safetensors\"}}",
         "which is not so"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        make_shards(cases[i][0]);
        assert_refused("shards", cases[i][1]);
    }
    make_shards("{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    char *path = scratch_path("shards");
    weights_close(weights_must_open(path));
    free(path);
}

static void test_tensor_in_two_shards(void **state)
{
    (void)state;
    static const char both[] = "{\"a\":" GOOD ",\"b\":" T("F32", "[2,2]", 16, 32) "}";
    make_shards("{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    put_safetensors("shards/2.safetensors", both, strlen(both), 32);
    char *path = scratch_path("shards");
    Weights *w = NULL;
    int status = weights_open(&w, path);
    // which of the two is found decides the words, never the outcome
    if (strstr(error_last()->what, "which is not so"))
        assert_input_error(status, "two shards", "holds a");
    else
        assert_input_error(status, "two shards", "there are two tensors of this name");
    free(path);
}

static void test_what_is_no_model(void **state)
{
    (void)state;
    static const char *const dirs[][3] = {
        {"pickles", "pytorch_model.bin", "save_pretrained"},
        {"many-pickles", "pytorch_model.bin.index.json", "save_pretrained"},
        {"adapter", "adapter_config.json", "a PEFT adapter, not a model"},
        {"other", "readme.txt", "no model.safetensors in it"},
        {"paper", "config.json", "no model.safetensors in it"},
    };
    for (size_t i = 0; i < COUNT_OF(dirs); i++) {
        char *dir = scratch_path(dirs[i][0]);
        assert_int_equal(make_dirs(dir), OK);
        char *file = xasprintf("%s/%s", dirs[i][0], dirs[i][1]);
        scratch_put(file, "", 0);
        assert_refused(dirs[i][0], dirs[i][2]);
        assert_int_equal(weights_on_paper(dir), streq(dirs[i][0], "paper"));
        free(file);
        free(dir);
    }
    scratch_put("zip.bin", "PK\3\4....", 8);
    assert_refused("zip.bin", "convert it to safetensors");
    scratch_put("pickle.pt", "\x80\2}q.", 5);
    assert_refused("pickle.pt", "convert it to safetensors");
    scratch_put("notes.txt", "hello", 5);
    assert_refused("notes.txt", "neither safetensors nor GGUF");
    assert_refused("nothing", "cannot open");
    Weights *w = NULL;
    assert_input_error(weights_open(&w, "/dev/null"), "device", "not a regular file");
}

// ---- GGUF: one good file, of which each case changes one field ------------------------------------------------------
typedef struct GgufParts {
    const char *magic;
    uint64_t version, n_tensors, n_keys;
    // keys
    const char *arch, *key2;
    uint64_t key2_bytes; // length field of its name
    uint32_t key2_type, item_type;
    uint64_t items;        // said, of an array
    uint64_t string_bytes; // said, of a string
    const char *string;
    uint64_t alignment, alignment_type;
    // tensors
    const char *name1, *name2;
    uint64_t name_bytes; // length field of the first; 0: right
    uint64_t ndim, extent0, extent1, type, offset2;
    uint64_t heads, split;
    size_t data_bytes;
} GgufParts;

static const GgufParts good_parts = {
    "GGUF", 3, 2, 6, "llama", "t.key", 5, 8, 8,      0, 3, "abc", 32, 4, "blk.0.attn_q.weight", "output_norm.weight",
    0,      2, 4, 4, 0,       64,      2, 1, 64 + 16};

static void put_le(Buf *b, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++) buf_put(b, &(char){(char)(v >> (8 * i))}, 1);
}

static void put_text(Buf *b, const char *text, uint64_t said)
{
    put_le(b, said, 8);
    buf_puts(b, text);
}

static void put_key(Buf *b, const char *name, uint32_t type, uint64_t value, int bytes)
{
    put_text(b, name, strlen(name));
    put_le(b, type, 4);
    put_le(b, value, bytes);
}

static void put_gguf(const char *file, const GgufParts *p)
{
    Buf b = {0};
    buf_puts(&b, p->magic);
    put_le(&b, p->version, 4);
    put_le(&b, p->n_tensors, 8);
    put_le(&b, p->n_keys, 8);
    put_text(&b, "general.architecture", 20);
    put_le(&b, 8, 4);
    put_text(&b, p->arch, strlen(p->arch));
    put_key(&b, "general.alignment", (uint32_t)p->alignment_type, p->alignment, p->alignment_type == 4 ? 4 : 8);
    put_key(&b, "llama.attention.head_count", 4, p->heads, 4);
    put_key(&b, "split.count", 2, p->split, 2);
    put_key(&b, "t.bool", 7, 1, 1);
    put_text(&b, p->key2, p->key2_bytes);
    put_le(&b, p->key2_type, 4);
    if (p->key2_type == 9) {
        put_le(&b, p->item_type, 4);
        put_le(&b, p->items, 8);
    }
    put_text(&b, p->string, p->string_bytes);
    put_text(&b, p->name1, p->name_bytes ? p->name_bytes : strlen(p->name1));
    put_le(&b, p->ndim, 4);
    put_le(&b, p->extent0, 8);
    put_le(&b, p->extent1, 8);
    put_le(&b, p->type, 4);
    put_le(&b, 0, 8);
    put_text(&b, p->name2, strlen(p->name2));
    put_le(&b, 1, 4);
    put_le(&b, 4, 8);
    put_le(&b, 0, 4);
    put_le(&b, p->offset2, 8);
    while (b.len % 32) buf_put(&b, "\0", 1);
    for (size_t i = 0; i < p->data_bytes; i++) buf_put(&b, "\0", 1);
    scratch_put(file, b.data, b.len);
    buf_free(&b);
}

#define CASE(telling, ...)                                                                                             \
    parts = good_parts;                                                                                                \
    parts.__VA_ARGS__;                                                                                                 \
    put_gguf("t.gguf", &parts);                                                                                        \
    assert_refused("t.gguf", telling)

static void test_gguf_header(void **state)
{
    (void)state;
    GgufParts parts = good_parts;
    put_gguf("t.gguf", &parts);
    char *path = scratch_path("t.gguf");
    weights_close(weights_must_open(path)); // the file that the cases change is a good one
    free(path);
    CASE("neither safetensors nor GGUF", magic = "GGUX");
    CASE("GGUF version 1", version = 1);
    CASE("GGUF version 4", version = 4);
    CASE("big-endian", version = 0x03000000);
    CASE("tensors and", n_tensors = 65537);
    CASE("tensors and", n_tensors = UINT64_MAX);
    CASE("tensors and", n_keys = 1ull << 32);
    CASE("t.gguf", n_keys = 7);
    CASE("t.gguf", n_keys = 5);
    CASE("t.gguf", n_tensors = 3);
    CASE("one of 2 parts of a split GGUF model", split = 2);
}

static void test_gguf_keys(void **state)
{
    (void)state;
    GgufParts parts;
    CASE("key t.bool is there twice", key2 = "t.bool", parts.key2_bytes = 6);
    CASE("the name of key 5", key2_bytes = 0);
    CASE("the name of key 5", key2_bytes = 1025);
    CASE("the name of key 5", key2_bytes = UINT64_MAX);
    CASE("the name of key 5", key2 = "t\033ke");
    CASE("the name of key 5", key2 = "t\xffkey");
    CASE("key t.key: unknown value type 13", key2_type = 13);
    CASE("key t.key: unknown value type", key2_type = UINT32_MAX);
    CASE("key t.key: unknown value type 9, items of type 9", key2_type = 9, parts.item_type = 9);
    CASE("key t.key: unknown value type 9, items of type 13", key2_type = 9, parts.item_type = 13);
    CASE("key t.key: a string of 16777217 bytes", string_bytes = (16 << 20) + 1);
    CASE("key t.key: a string of 18446744073709551615 bytes", string_bytes = UINT64_MAX);
    CASE("ends at byte", string_bytes = 16 << 20);
    CASE("key t.key: string 0 is no UTF-8", string = "a\xc3(");
    CASE("key t.key: 16777217 items, at most", key2_type = 9, parts.items = (16 << 20) + 1);
    CASE("key t.key: 18446744073709551615 items, at most", key2_type = 9, parts.items = UINT64_MAX);
    CASE("key t.key: 1000 items, more than the file can hold", key2_type = 9, parts.items = 1000);
    CASE("key t.key: 100 items, more than the file can hold", key2_type = 9, parts.items = 100, parts.item_type = 10);
    CASE("key t.key: a truth value", key2_type = 7); // the first byte of the string's length is 3
    CASE("key general.alignment", alignment = 0);
    CASE("key general.alignment", alignment = 4);
    CASE("key general.alignment", alignment = 48);
    CASE("key general.alignment", alignment = 1 << 17);
    CASE("key general.alignment", alignment_type = 10); // u64: the specification wants u32
}

static void test_gguf_tensors(void **state)
{
    (void)state;
    GgufParts parts;
    CASE("the name of tensor 0", name_bytes = 64);
    CASE("the name of tensor 0", name_bytes = UINT64_MAX);
    CASE("the name of tensor 1", name2 = "");
    CASE("tensor model.norm.weight: there are two", name1 = "output_norm.weight");
    CASE("tensor a\xc3\xa9: there are two", name1 = "a\xc3\xa9", parts.name2 = "a\xc3\xa9");
    CASE("tensor blk.0.attn_q.weight: 5 dimensions", ndim = 5);
    CASE("tensor blk.0.attn_q.weight: 4294967295 dimensions", ndim = UINT32_MAX);
    CASE("tensor blk.0.attn_q.weight: dimension 0 is not positive", extent0 = 0);
    CASE("tensor blk.0.attn_q.weight: dimension 1 is not positive", extent1 = 1ull << 63);
    CASE("tensor blk.0.attn_q.weight: the product of its dimensions overflows", extent0 = 1ull << 40,
         parts.extent1 = 1ull << 40);
    CASE("tensor blk.0.attn_q.weight: its size in bytes overflows", extent0 = 1ull << 31, parts.extent1 = 1ull << 31,
         parts.type = 28);
    CASE("tensor blk.0.attn_q.weight: needs 68719476736 bytes", extent0 = 1ull << 34, parts.extent1 = 1);
    CASE("tensor blk.0.attn_q.weight: rows of 4 elements are no whole number of Q4_0 blocks", type = 2);
    CASE("tensor blk.0.attn_q.weight: unknown tensor type 5", type = 5); // Q4_3, long gone
    CASE("tensor blk.0.attn_q.weight: unknown tensor type 999", type = 999);
    CASE("tensor output_norm.weight: its data is said to be at 0", offset2 = 0);
    CASE("tensor output_norm.weight: its data is said to be at 96", offset2 = 96);
    CASE("tensor output_norm.weight: its data is said to be at 18446744073709551615", offset2 = UINT64_MAX);
    CASE("tensor output_norm.weight: ends at byte", data_bytes = 64 + 15);
    CASE("t.gguf", data_bytes = 0);
    CASE("4 rows cannot be 3 heads", heads = 3);
    CASE("4 rows cannot be 4 heads", heads = 4); // heads of one row have no pairs
    CASE("4 rows cannot be 0 heads", heads = 0);
    CASE("4 rows cannot be 4294967295 heads", heads = UINT32_MAX);
}

static void test_gguf_cut_anywhere(void **state)
{
    (void)state;
    char *data;
    size_t bytes;
    assert_int_equal(file_read(GOLDEN "phi3.gguf", 1 << 20, &data, &bytes), OK);
    for (size_t n = 0; n < bytes - 16; n++) { // padding behind the last tensor may be missing
        scratch_put("t.gguf", data, n);
        assert_refused("t.gguf", "t.gguf");
    }
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_headers),
        cmocka_unit_test(test_safetensors_lengths),
        cmocka_unit_test(test_safetensors_cut_anywhere),
        cmocka_unit_test(test_indexes),
        cmocka_unit_test(test_tensor_in_two_shards),
        cmocka_unit_test(test_what_is_no_model),
        cmocka_unit_test(test_gguf_header),
        cmocka_unit_test(test_gguf_keys),
        cmocka_unit_test(test_gguf_tensors),
        cmocka_unit_test(test_gguf_cut_anywhere),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
