// Shared by the tests of runtime/text: golden files, cmocka, and the generator of random strings.
#pragma once
#include "text/tokenizer.h"
#include "text/unicode.h"
#include <jansson.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GOLDEN TEST_DIR "/../golden/"

static inline char *read_golden(const char *name, size_t *bytes)
{
    char *path = xasprintf(GOLDEN "%s", name), *text = NULL;
    if (file_read(path, 64 << 20, &text, bytes) != OK) fail_msg("%s: %s", path, error_last()->what);
    free(path);
    return text;
}

static inline json_t *parse_json(const char *text, size_t bytes)
{
    json_error_t e;
    json_t *root = json_loadb(text, bytes, JSON_ALLOW_NUL | JSON_DECODE_ANY, &e);
    if (!root) fail_msg("golden file: %s", e.text);
    return root;
}

// JSON values, one per line, as an array.
static inline json_t *read_lines(const char *name)
{
    size_t bytes;
    char *text = read_golden(name, &bytes), *line = text;
    json_t *rows = json_array();
    for (char *end; (end = strchr(line, '\n')); line = end + 1)
        json_array_append_new(rows, parse_json(line, (size_t)(end - line)));
    free(text);
    return rows;
}

// ---- random strings: the same generator as in golden/make_tokenizer_golden.py ----------------------------------------
typedef struct RandomText {
    uint64_t state; // starts as the seed
    Buf text;
} RandomText;

static inline uint32_t random_draw(RandomText *r, size_t n)
{
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((r->state >> 33) % n);
}

static inline void random_next(RandomText *r)
{
    static const uint32_t ranges[][2] = {
        {0x20, 0x7E},       {0x61, 0x7A},       {0x61, 0x7A},      {0x41, 0x5A},       {0x30, 0x39},
        {0x00, 0x20},       {0x7F, 0xFF},       {0x100, 0x24F},    {0x300, 0x36F},     {0x370, 0x3FF},
        {0x400, 0x4FF},     {0x590, 0x6FF},     {0x900, 0x97F},    {0xE00, 0xE7F},     {0x1100, 0x11FF},
        {0x1E00, 0x1FFF},   {0x2000, 0x206F},   {0x20A0, 0x20CF},  {0x2150, 0x218F},   {0x2190, 0x23FF},
        {0x3000, 0x30FF},   {0x4E00, 0x9FFF},   {0xAC00, 0xD7A3},  {0xE000, 0xE0FF},   {0xF900, 0xFAFF},
        {0xFB00, 0xFB4F},   {0xFE00, 0xFE0F},   {0xFF00, 0xFFEF},  {0x10300, 0x1034F}, {0x1D400, 0x1D7FF},
        {0x1F300, 0x1F64F}, {0x20000, 0x200FF}, {0xE0100, 0xE01EF}};
    static const char *const strings[] = {
        " ",      " ",      " ",      "  ",       "    ",     "\n",     "\n\n",   "\r\n",         "\t",
        "\u00a0", "\u3000", "\u2028", "\xC2\x85", "\u180e",   "'s",     "'LL",    "the",          " the",
        " and",   "ing",    "1234",   "...",      "\u200d",   "\ufe0f", "\u2581", "<|im_start|>", "<|im_end|>",
        "<s>",    "</s>",   "[MASK]", "<sp>",     "New York", "<unk>",  "<0x41>"};
    uint32_t parts = 1 + random_draw(r, 30);
    r->text.len = 0;
    while (parts-- > 0) {
        if (random_draw(r, 4) == 0) {
            buf_puts(&r->text, strings[random_draw(r, COUNT_OF(strings))]);
            continue;
        }
        const uint32_t *range = ranges[random_draw(r, COUNT_OF(ranges))];
        char utf8[4];
        buf_put(&r->text, utf8, (size_t)utf8_encode(range[0] + random_draw(r, range[1] - range[0] + 1), utf8));
    }
}
