// recipe_hint: "did you mean": the nearest option to a key that does not exist, also across sections, and
// what other tools call the same thing.
#include "recipe_impl.h"
#include <ctype.h>
#include <string.h>

// Names that users of other fine-tuning tools type -> ours. A name of ours needs no row: the nearest one is
// found.
static const char *const other_names[][2] = {
    {"learning_rate", "train.lr"},
    {"lr_scheduler", "train.schedule"},
    {"lr_scheduler_type", "train.schedule"},
    {"warmup_ratio", "train.warmup"},
    {"warmup_steps", "train.warmup"},
    {"num_epochs", "train.epochs"},
    {"num_train_epochs", "train.epochs"},
    {"max_steps", "train.steps"},
    {"iters", "train.steps"},
    {"batch_size", "train.batch"},
    {"micro_batch_size", "train.micro_tokens"},
    {"per_device_train_batch_size", "train.batch"},
    {"gradient_accumulation_steps", "train.batch"},
    {"gradient_checkpointing", "train.recompute"},
    {"max_grad_norm", "train.clip"},
    {"logging_steps", "train.log_every"},
    {"adam_epsilon", "train.eps"},
    {"base_model", "model"},
    {"model_name_or_path", "model"},
    {"output_dir", "output"},
    {"finetuning_type", "method"},
    {"bf16", "precision"},
    {"lora_r", "lora.rank"},
    {"lora_alpha", "lora.alpha"},
    {"lora_dropout", "lora.dropout"},
    {"lora_target", "lora.targets"},
    {"lora_target_modules", "lora.targets"},
    {"target_modules", "lora.targets"},
    {"r", "lora.rank"},
    {"sequence_len", "data.max_tokens"},
    {"max_seq_length", "data.max_tokens"},
    {"cutoff_len", "data.max_tokens"},
    {"packing", "data.pack"},
    {"sample_packing", "data.pack"},
    {"train_on_inputs", "data.loss_on"},
    {"chat_template", "data.template"},
    {"dataset", "data.train"},
    {"datasets", "data.train"},
    {"eval_steps", "eval.every"},
    {"save_steps", "checkpoint.every"},
    {"save_total_limit", "checkpoint.keep"},
};

static const char *known_elsewhere(const char *key)
{
    char lower[64];
    size_t n = 0;
    for (; key[n] && n < sizeof lower - 1; n++) lower[n] = key[n] == '-' ? '_' : (char)tolower((unsigned char)key[n]);
    lower[n] = 0;
    for (size_t i = 0; i < COUNT_OF(other_names); i++)
        if (streq(other_names[i][0], lower)) return other_names[i][1];
    return NULL;
}

// How far off a typing error may be for a word of this length
static int tolerance(const char *word)
{
    size_t n = strlen(word);
    return n <= 2 ? 0 : n <= 5 ? 1 : n <= 9 ? 2 : 3;
}

// Smaller is nearer; -1: not near. A key of the same section wins over one of another.
static int nearness(const Option *o, const char *section, const char *key, const char *full)
{
    int by_key = edit_distance(key, o->key), by_name = edit_distance(full, o->name);
    bool same = streq(o->section, section);
    int score = 2 * by_key + !same;
    if (*section && 2 * by_name + 1 < score) score = 2 * by_name + 1; // the section itself is misspelt
    if (score < 0 || (by_key > tolerance(key) && !(*section && by_name <= tolerance(full)))) return -1;
    return score;
}

static void list_keys(const char *section, Buf *b)
{
    int n;
    const Option *o = option_table(&n);
    const char *sep = "", *last = "";
    for (int i = 0; i < n; i++) {
        bool key = streq(o[i].section, section);
        bool opens = !*section && *o[i].section && !streq(o[i].section, last); // at the top level, sections by name
        last = o[i].section;
        if (!key && !opens) continue;
        buf_printf(b, "%s%s%s", sep, key ? o[i].key : o[i].section, key ? "" : ":");
        sep = ", ";
    }
}

static const char *near_section(const char *key)
{
    int n, best = tolerance(key) + 1;
    const Option *o = option_table(&n);
    const char *found = NULL;
    for (int i = 0; i < n; i++) {
        if (!*o[i].section) continue;
        int d = edit_distance(key, o[i].section);
        if (d < best) best = d, found = o[i].section;
    }
    return found;
}

const char *option_hint(const char *section, const char *key)
{
    const char *elsewhere = known_elsewhere(key);
    if (elsewhere) return tmpf("here it is %s", elsewhere);
    const char *full = *section ? tmpf("%s.%s", section, key) : key;
    int n, best = INT32_MAX;
    const Option *o = option_table(&n);
    Buf b = {0};
    for (int i = 0; i < n; i++) { // all that are equally near
        int score = nearness(&o[i], section, key, full);
        if (score < 0 || score > best) continue;
        if (score < best) b.len = 0;
        best = score;
        buf_printf(&b, "%s%s", b.len ? " or " : "did you mean ", o[i].name);
    }
    const char *as_section = *section ? NULL : near_section(key);
    if (as_section && (!b.len || 2 * edit_distance(key, as_section) < best)) {
        b.len = 0;
        buf_printf(&b, "did you mean the section %s", as_section);
    }
    if (b.len) {
        buf_puts(&b, "?");
    } else if (*section && !section_exists(section)) {
        buf_puts(&b, "`attune help recipe` lists every option");
    } else {
        buf_printf(&b, "known %s%s: ", *section ? "in " : "keys", section);
        list_keys(section, &b);
    }
    const char *hint = tmpf("%s", b.data);
    buf_free(&b);
    return hint;
}

const char *choice_hint(const char *choices, const char *given)
{
    char all[256];
    size_t used = 0;
    const char *near = NULL;
    for (const char *c = choices; *c;) {
        size_t len = strcspn(c, "|");
        const char *word = tmpf("%.*s", (int)len, c);
        if (!near && edit_distance(word, given) <= tolerance(given)) near = word;
        used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", used ? ", " : "", word);
        ASSERT(used < sizeof all);
        c += len + (c[len] == '|');
    }
    return near ? tmpf("did you mean %s? It knows %s", near, all) : tmpf("it knows %s", all);
}
