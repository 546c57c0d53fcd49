// Recipes: what is read, what is refused (with which place, words and hint), and that the resolved recipe
// reads back the same.
#include "config/recipe.h" // before cmocka.h, which has a macro named fail
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static int parse(Recipe *r, const char *yaml, const char *overrides)
{
    char *list[8], *copy = xstrdup(overrides), *save = NULL;
    int n = 0;
    for (char *o = strtok_r(copy, ";", &save); o; o = strtok_r(NULL, ";", &save)) list[n++] = o;
    error_clear();
    int status = recipe_parse(r, yaml, strlen(yaml), "r.yaml", list, n);
    free(copy);
    return status;
}

static void must_parse(Recipe *r, const char *yaml, const char *overrides)
{
    if (parse(r, yaml, overrides) < 0) fail_msg("%s: %s", error_last()->place, error_last()->what);
}

// ---- what is refused --------------------------------------------------------------------------------------
typedef struct Bad {
    const char *yaml, *overrides;    // overrides separated by ';'
    const char *place, *what, *hint; // place exactly, what and hint as substrings
} Bad;

static const Bad bad[] = {
    // keys
    {"model: m\nlr: 1e-5\n", "", "r.yaml:2", "unknown key lr", "did you mean train.lr?"},
    {"model: m\ntrain:\n  lrr: 1\n", "", "r.yaml:3", "unknown key train.lrr", "did you mean train.lr?"},
    {"model: m\ntrain:\n  rnak: 1\n", "", "r.yaml:3", "unknown key train.rnak", "did you mean lora.rank?"},
    {"modle: m\n", "", "r.yaml:1", "unknown key modle", "did you mean model?"},
    {"model: m\nlroa: {rank: 1}\n", "", "r.yaml:2", "unknown key lroa", "did you mean the section lora?"},
    {"model: m\nevery: 1\n", "", "r.yaml:2", "unknown key every", "checkpoint.every or eval.every"},
    {"model: m\ntrain.lr: 1\n", "", "r.yaml:2", "unknown key train.lr", "write `lr:` indented under `train:`"},
    {"model: m\nlearning_rate: 1\n", "", "r.yaml:2", "unknown key", "here it is train.lr"},
    {"model: m\nxyzzyplugh: 1\n", "", "r.yaml:2", "unknown key", "known keys: model, adapter"},
    {"model: m\nlora:\n  xyzzyplugh: 1\n", "", "r.yaml:3", "unknown key", "known in lora: rank, alpha"},
    {"model: m\nseed: 1\nseed: 2\n", "", "r.yaml:3", "seed is given twice, first in line 2", ""},
    {"model: m\nlora: {rank: 1}\ntrain: {lr: 1}\nlora: {alpha: 1}\n", "", "r.yaml:4", "section lora is given twice",
     ""},
    {"model: m\nlora: 3\n", "", "r.yaml:2", "lora is a section", "indented below `lora:`"},
    {"model: m\nlora: [3]\n", "", "r.yaml:2", "lora is a section", ""},
    {"model: m\n? [a]\n: b\n", "", "r.yaml:2", "a key is not a plain word", ""},
    // numbers
    {"model: m\ntrain:\n  batch: 1_000\n", "", "r.yaml:3", "train.batch takes a whole number, not \"1_000\"",
     "digits only"},
    {"model: m\ntrain:\n  batch: 1.5\n", "", "r.yaml:3", "train.batch takes a whole number, not \"1.5\"", ""},
    {"model: m\ntrain:\n  batch: \"8\"\n", "", "r.yaml:3", "takes a whole number", "remove the quotes"},
    {"model: m\ntrain:\n  batch:\n", "", "r.yaml:3", "takes a whole number", "write a value after `batch:`"},
    {"model: m\ntrain:\n  batch: 0\n", "", "r.yaml:3", "a number from 1 to 1048576, not 0", ""},
    {"model: m\nseed: 99999999999999999999\n", "", "r.yaml:2", "seed is at least 0", ""},
    {"model: m\nseed: 1e300\n", "", "r.yaml:2", "seed is at least 0", ""},
    {"model: m\nseed: -1\n", "", "r.yaml:2", "seed is at least 0, not -1", ""},
    {"model: m\ntrain: {lr: 1e}\n", "", "r.yaml:2", "train.lr takes a number, not \"1e\"", ""},
    {"model: m\ntrain: {lr: 1e999}\n", "", "r.yaml:2", "train.lr is a number from 0 to 1000", ""},
    {"model: m\ntrain: {lr: .nan}\n", "", "r.yaml:2", "train.lr is a number from 0 to 1000, not .nan", ""},
    {"model: m\ntrain: {lr: .inf}\n", "", "r.yaml:2", "train.lr is a number from 0 to 1000", ""},
    {"model: m\ntrain: {lr: -1e-5}\n", "", "r.yaml:2", "train.lr is a number from 0 to 1000", ""},
    {"model: m\ntrain: {lr: .}\n", "", "r.yaml:2", "train.lr takes a number", ""},
    {"model: m\ntrain: {lr: 1e-5x}\n", "", "r.yaml:2", "train.lr takes a number", ""},
    {"model: m\nparallel: {zero: 4}\n", "", "r.yaml:2", "parallel.zero", ""},
    // other values
    {"model: m\ndeterministic: yes\n", "", "r.yaml:2", "deterministic is true or false, not \"yes\"", "true or false"},
    {"model: m\nmethod: loar\n", "", "r.yaml:2", "method: this build does not know \"loar\"", "did you mean lora?"},
    {"model: m\nobjective: dpo\n", "", "r.yaml:2", "objective: this build does not know \"dpo\"",
     "it knows sft, pretrain"},
    {"model: m\nmethod: lor\n", "", "r.yaml:2", "does not know \"lor\"", "did you mean lora?"},
    {"model: [a, b]\n", "", "r.yaml:1", "model takes one value, not a list", ""},
    {"model: {a: b}\n", "", "r.yaml:1", "model takes one value, not `key: value` pairs", ""},
    {"model: m\nlora: {targets: [[a]]}\n", "", "r.yaml:2", "lists hold plain values", ""},
    {"model: m\nlora: {targets: {a: b}}\n", "", "r.yaml:2", "lora.targets takes a list", ""},
    {"model: m\nlora: {targets: [a, '']}\n", "", "r.yaml:2", "lora.targets: item 2 is empty", ""},
    {"model: m\ntrack: {tags: x}\n", "", "r.yaml:2", "track.tags takes pairs", ""},
    {"model: m\ntrack: {tags: {a: 1, a: 2}}\n", "", "r.yaml:2", "track.tags: a is there twice", ""},
    // YAML that recipes do not have
    {"model: &a m\noutput: *a\n", "", "r.yaml:1", "anchors (&a) are not read", ""},
    {"model: *a\n", "", "r.yaml:1", "aliases", ""},
    {"model: !!str m\n", "", "r.yaml:1", "tags (tag:yaml.org,2002:str) are not read", ""},
    {"model: m\n<<: {seed: 1}\n", "", "r.yaml:2", "merge keys (<<) are not read", ""},
    {"model: m\n---\nmodel: n\n", "", "r.yaml:2", "a second one starts", ""},
    {"- model\n", "", "r.yaml:1", "a recipe is made of `key: value` lines", ""},
    {"model: m\n\tseed: 1\n", "", "r.yaml:2", "", ""},
    {"model: a: b\n", "", "r.yaml:1", "mapping values are not allowed", "quote values"},
    {"model: m\ntrain: {lr: 1\n", "", "r.yaml:3", "", ""},
    {"model: \"a\\0b\"\n", "", "r.yaml:1", "NUL", ""},
    {"model: \xff\n", "", "r.yaml", "byte 7", "UTF-8"},
    // overrides
    {"model: m\n", "train.lrr=1", "command line", "unknown option train.lrr", "did you mean train.lr?"},
    {"model: m\n", "lr=1", "command line", "unknown option lr", "did you mean train.lr?"},
    {"model: m\n", "trian.lr=1", "command line", "unknown option trian.lr", "did you mean train.lr?"},
    {"model: m\n", "train=1", "command line", "train is a section", "train.KEY=VALUE"},
    {"model: m\n", "train.lr", "command line", "\"train.lr\" is not an override", "section.key=value"},
    {"model: m\n", "=1", "command line", "\"=1\" is not an override", ""},
    {"model: m\n", "train.lr=fast", "command line", "train.lr takes a number, not \"fast\"", ""},
    {"model: m\n", "lora.targets=[a", "command line", "", ""},
    {"model: m\n", "lora.targets=q_proj,v_proj", "command line", "is not a module's name", "[q_proj, v_proj]"},
    {"model: m\n", "output=\xff", "command line", "not valid UTF-8", ""},
    // checks over several options
    {"", "", "r.yaml", "model is not set", "model: HF directory"},
    {"model:\n", "", "r.yaml:1", "model is not set", ""},
    {"model: m\noutput: ''\n", "", "r.yaml:2", "output is not set", ""},
    {"model: m\nlora: {targets: []}\n", "", "r.yaml:2", "lora.targets is not set, and method lora needs it", ""},
    {"model: m\nmethod: freeze\n", "", "r.yaml", "freeze.train is not set, and method freeze needs it", ""},
    {"model: m\ntrain: {steps: 0, epochs: 0}\n", "", "r.yaml:2", "nothing would be trained", ""},
    {"model: m\ntrain: {beta2: 1}\n", "", "r.yaml:2", "below 1", ""},
    {"model: m\ntrack: {wandb: online}\n", "", "r.yaml:2", "track.wandb: this build has no trackers", "metrics.jsonl"},
    {"model: m\ntrack: {mlflow: http://x}\n", "", "r.yaml:2", "track.mlflow: this build has no trackers", ""},
    {"model: m\n", "track.tensorboard=true", "command line", "track.tensorboard: this build has no trackers", ""},
    {"model: m\neval: {metrics: [loss, bleu]}\n", "", "r.yaml:2", "does not know \"bleu\"", "it knows loss, rouge"},
    {"model: m\nobjective: pretrain\ndata: {loss_on: completion}\n", "", "r.yaml:3", "contradicts", ""},
};

static void test_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Recipe r;
        int status = parse(&r, bad[i].yaml, bad[i].overrides);
        const ErrorRecord *e = error_last();
        bool right = status == E_INPUT && streq(e->place, bad[i].place) && strstr(e->what, bad[i].what) &&
                     strstr(e->hint, bad[i].hint);
        if (!right)
            fail_msg("%s + %s: status %d, \"%s: %s\", hint \"%s\"", bad[i].yaml, bad[i].overrides, status, e->place,
                     e->what, e->hint);
        assert_null(r.memory);
    }
}

// ---- what is read -----------------------------------------------------------------------------------------
static void test_numbers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double lr;
    } reals[] = {{"1e-5", 1e-5}, {"1E-4", 1e-4}, {"2.0e-4", 2.0e-4}, {".5", .5},   {"5.", 5},         {"+1e+2", 100},
                 {"0", 0},       {"007", 7},     {"0x10", 16},       {"0o17", 15}, {"1e-300", 1e-300}};
    for (size_t i = 0; i < COUNT_OF(reals); i++) {
        Recipe r;
        must_parse(&r, "model: m", tmpf("train.lr=%s", reals[i].text));
        assert_true(r.train.lr == reals[i].lr);
        recipe_free(&r);
        must_parse(&r, tmpf("model: m\ntrain:\n  lr: %s # comment\n", reals[i].text), "");
        assert_true(r.train.lr == reals[i].lr);
        recipe_free(&r);
    }
    static const struct {
        const char *text;
        int64_t batch;
    } wholes[] = {{"1e3", 1000}, {"8", 8}, {"+8", 8}, {"0x20", 32}, {"0o10", 8}, {"010", 10}, {"2.0", 2}};
    for (size_t i = 0; i < COUNT_OF(wholes); i++) {
        Recipe r;
        must_parse(&r, tmpf("model: m\ntrain: {batch: %s}\n", wholes[i].text), "");
        assert_true(r.train.batch == wholes[i].batch);
        recipe_free(&r);
    }
}

static void test_defaults(void **state)
{
    (void)state;
    Recipe r;
    must_parse(&r, "model: m\neval:\nadapter:\n", "");
    assert_string_equal(r.model, "m");
    assert_string_equal(r.adapter, "");
    assert_string_equal(r.method, "lora");
    assert_int_equal(r.seed, 1);
    assert_true(r.deterministic);
    assert_int_equal(r.data.max_tokens, 1024);
    assert_true(r.train.lr == 2e-4 && r.train.beta2 == 0.999 && r.train.eps == 1e-8);
    assert_int_equal(r.lora.targets.n, 1);
    assert_string_equal(r.lora.targets.item[0], "all-linear");
    assert_int_equal(r.freeze.train.n, 0);
    assert_string_equal(r.track.wandb, "off");
    assert_int_equal(r.track.tags.n, 0);
    recipe_free(&r);
}

static void test_values(void **state)
{
    (void)state;
    Recipe r;
    must_parse(&r,
               "# comment\nmodel: 'a: b'\noutput: \"runs/\\u00e9\"\ndata: {train: x#y.jsonl}\nlora:\n  "
               "targets: [q_proj, v_proj]\n"
               "track:\n  wandb: false\n  tags: {team: blue, n: 3}\ndeterministic: False\n",
               "model=c: d #e;freeze.train=[\"layers\\\\.1[0-9]\", "
               "lm_head];lora.rank=1e1;track.experiment=x=y;seed=2;seed=3");
    assert_string_equal(r.model, "c: d #e");
    assert_string_equal(r.output, "runs/\xc3\xa9");
    assert_string_equal(r.data.train, "x#y.jsonl");
    assert_int_equal(r.lora.targets.n, 2);
    assert_string_equal(r.lora.targets.item[1], "v_proj");
    assert_int_equal(r.freeze.train.n, 2);
    assert_string_equal(r.freeze.train.item[0], "layers\\.1[0-9]");
    assert_int_equal(r.lora.rank, 10);
    assert_string_equal(r.track.experiment, "x=y");
    assert_string_equal(r.track.wandb, "off");
    assert_int_equal(r.track.tags.n, 2);
    assert_string_equal(r.track.tags.key[1], "n");
    assert_string_equal(r.track.tags.value[1], "3");
    assert_false(r.deterministic);
    assert_int_equal(r.seed, 3);
    recipe_free(&r);
}

static void test_scalar_is_list_of_one(void **state)
{
    (void)state;
    Recipe r;
    must_parse(&r, "model: m\nlora: {targets: q_proj}\n", "eval.metrics=rouge");
    assert_int_equal(r.lora.targets.n, 1);
    assert_string_equal(r.lora.targets.item[0], "q_proj");
    assert_string_equal(r.eval.metrics.item[0], "rouge");
    recipe_free(&r);
}

static void test_pretrain_trains_all(void **state)
{
    (void)state;
    Recipe r;
    must_parse(&r, "model: m\nobjective: pretrain\n", "");
    assert_string_equal(r.data.loss_on, "all");
    recipe_free(&r);
}

static void test_places(void **state)
{
    (void)state;
    Recipe r;
    must_parse(&r, "model: m\ndata:\n  train: x\n", "data.test=y");
    assert_string_equal(recipe_place(&r, "data.train"), "r.yaml:3");
    assert_string_equal(recipe_place(&r, "data.test"), "command line");
    assert_string_equal(recipe_place(&r, "data.valid"), "r.yaml");
    assert_int_equal(recipe_need(&r, "data.train", "attune train"), OK);
    assert_int_equal(recipe_need(&r, "data.valid", "attune train"), E_INPUT);
    assert_string_equal(error_last()->what, "data.valid is not set, and attune train needs it");
    recipe_free(&r);
    recipe_free(&r); // twice is fine
}

// ---- what is written --------------------------------------------------------------------------------------
static void written(const Recipe *r, Buf *b)
{
    b->len = 0;
    recipe_write_yaml(r, b);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const char *const overrides[] = {
        "",
        "train.lr=1e-5;train.eps=1e-08;train.epochs=0.1;train.clip=1e9;seed=9223372036854775807",
        "model=no;output=1_000;track.experiment=12:30;data.train=~;data.test= x ;data.valid=- a",
        "model=a\"b\\c\nd\te;output=\xc2\x85\xe2\x80\xa8\xef\xbb\xbf\xf0\x9f\x98\x80;track.experiment="
        "\x7f\x01",
        "freeze.train=[\"a, b\", 'c: d', '{e}', '\\d+'];track.tags={\"a b\": \"c: d\", off: 'no'}",
        "objective=pretrain;data.pack=false;method=full;precision=f32",
    };
    for (size_t i = 0; i < COUNT_OF(overrides); i++) {
        Recipe r, again;
        Buf first = {0}, second = {0};
        must_parse(&r, "model: m", overrides[i]);
        written(&r, &first);
        must_parse(&again, first.data, "");
        written(&again, &second);
        assert_string_equal(first.data, second.data);
        assert_string_equal(r.model, again.model);
        assert_string_equal(r.output, again.output);
        assert_string_equal(r.track.experiment, again.track.experiment);
        assert_true(r.train.lr == again.train.lr && r.train.eps == again.train.eps &&
                    r.train.epochs == again.train.epochs);
        assert_int_equal(r.freeze.train.n, again.freeze.train.n);
        for (int k = 0; k < r.freeze.train.n; k++)
            assert_string_equal(r.freeze.train.item[k], again.freeze.train.item[k]);
        assert_int_equal(r.track.tags.n, again.track.tags.n);
        buf_free(&first);
        buf_free(&second);
        recipe_free(&r);
        recipe_free(&again);
    }
}

static void test_written_floats_suit_old_readers(void **state)
{
    (void)state;
    Recipe r;
    Buf b = {0};
    must_parse(&r, "model: m", "train.eps=1e-8;train.lr=0.1;train.clip=1");
    written(&r, &b);
    assert_non_null(strstr(b.data, "  eps: 1.0e-08\n"));
    assert_non_null(strstr(b.data, "  lr: 0.1\n"));
    assert_non_null(strstr(b.data, "  clip: 1.0\n"));
    assert_non_null(strstr(b.data, "  wandb: \"off\"\n"));
    buf_free(&b);
    recipe_free(&r);
}

static void test_banner_and_help(void **state)
{
    (void)state;
    Recipe r;
    Buf b = {0};
    must_parse(&r, "model: m", "train.lr=0.1");
    recipe_banner(&r, &b);
    assert_non_null(strstr(b.data, "train.lr               0.1  (default 0.0002)"));
    assert_null(strstr(b.data, "train.batch"));
    b.len = 0;
    recipe_help(&b);
    assert_non_null(strstr(b.data, "  max_tokens: 1024    # 2..1048576\n      longest row\n"));
    assert_non_null(strstr(b.data, "\ntrack:\n"));
    b.len = 0;
    recipe_keys(&b);
    assert_non_null(strstr(b.data, "\ndata.train\n"));
    assert_int_equal(strncmp(b.data, "model\n", 6), 0);
    buf_free(&b);
    recipe_free(&r);
}

static void test_file(void **state)
{
    (void)state;
    Recipe r;
    error_clear();
    assert_int_equal(recipe_load(&r, "no/such/recipe.yaml", NULL, 0), E_INPUT);
    assert_string_equal(error_last()->place, "no/such/recipe.yaml");
    char *override = (char *)"model=m";
    error_clear();
    assert_int_equal(recipe_load(&r, NULL, &override, 1), OK);
    assert_string_equal(r.file, "");
    recipe_free(&r);
}

static void test_too_large(void **state)
{
    (void)state;
    size_t bytes = (1 << 20) + 1;
    char *yaml = xmalloc(bytes + 1);
    memset(yaml, '#', bytes);
    yaml[bytes] = 0;
    Recipe r;
    assert_int_equal(parse(&r, yaml, ""), E_INPUT);
    assert_non_null(strstr(error_last()->what, "at most 1048576"));
    memset(yaml, '[', bytes - 1); // as deep as it is long
    yaml[bytes - 1] = 0;
    assert_int_equal(parse(&r, yaml, ""), E_INPUT);
    free(yaml);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_scalar_is_list_of_one),
        cmocka_unit_test(test_pretrain_trains_all),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_written_floats_suit_old_readers),
        cmocka_unit_test(test_banner_and_help),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_too_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
