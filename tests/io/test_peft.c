// runtime/io/peft.c: configurations as PEFT saves them, those that must be refused, and that what is written reads back.
#include "io_test.h"
#include "io/peft.h"
#include <math.h>

static PeftConfig must_read(const char *name)
{
    PeftConfig c;
    if (peft_config_read(&c, tmpf(GOLDEN "peft/%s", name)) < 0) fail_msg("%s: %s", name, error_last()->what);
    return c;
}

static void assert_names(char *const *names, const char *const *want, int n)
{
    assert_non_null(names);
    for (int i = 0; i < n; i++) assert_string_equal(names[i], want[i]);
    assert_null(names[n]);
}

static void test_lora(void **state)
{
    (void)state;
    static const char *const targets[] = {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"};
    PeftConfig c = must_read("lora");
    assert_int_equal(c.rank, 4);
    assert_true(c.alpha == 8 && c.dropout == 0);
    assert_false(c.use_rslora || c.use_dora || c.fan_in_fan_out);
    assert_string_equal(c.base_model, "base");
    assert_string_equal(c.task_type, "CAUSAL_LM");
    assert_names(c.targets, targets, 7);
    assert_null(c.targets_regex);
    assert_null(c.modules_to_save);
    assert_int_equal(c.n_pattern, 0);
    peft_config_free(&c);
}

static void test_variants(void **state)
{
    (void)state;
    static const char *const save[] = {"lm_head", "score"}, *const q[] = {"q_proj"}, *const all[] = {"all-linear"};
    PeftConfig c = must_read("dora");
    assert_true(c.use_dora && c.fan_in_fan_out && !c.use_rslora && c.rank == 8 && c.alpha == 16);
    assert_names(c.targets, q, 1);
    assert_names(c.modules_to_save, save, 2);
    assert_string_equal(c.task_type, "SEQ_CLS");
    assert_null(c.base_model);
    peft_config_free(&c);
    c = must_read("regex");
    assert_null(c.targets);
    assert_string_equal(c.targets_regex, ".*\\.layers\\.\\d+\\.self_attn\\.(q|v)_proj");
    peft_config_free(&c);
    c = must_read("all-linear");
    assert_names(c.targets, all, 1);
    assert_null(c.targets_regex);
    peft_config_free(&c);
    c = must_read("pattern");
    assert_true(c.use_rslora && c.dropout == 0.05 && c.n_pattern == 6);
    peft_config_free(&c);
}

// Ranks and alphas as PEFT itself assigns them (modules.txt).
static void check_modules(const PeftConfig *c)
{
    FILE *f = fopen(GOLDEN "peft/pattern/modules.txt", "r");
    char line[256], module[128];
    int want_rank, rank, n = 0;
    double want_alpha, alpha;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#') continue;
        assert_int_equal(sscanf(line, "%127s %d %lf", module, &want_rank, &want_alpha), 3);
        peft_module_rank(c, module, &rank, &alpha);
        if (rank != want_rank || alpha != want_alpha)
            fail_msg("%s: rank %d alpha %g, PEFT has %d and %g", module, rank, alpha, want_rank, want_alpha);
        n++;
    }
    fclose(f);
    assert_int_equal(n, 21);
}

static void test_patterns(void **state)
{
    (void)state;
    PeftConfig c = must_read("pattern");
    int rank;
    double alpha;
    check_modules(&c);
    peft_module_rank(&c, "model.layers.0.self_attn.xq_proj", &rank, &alpha); // a tail is dotted
    assert_int_equal(rank, 4);
    peft_module_rank(&c, "q_proj", &rank, &alpha);
    assert_int_equal(rank, 2);
    assert_true(alpha == 8);
    peft_config_free(&c);
}

static void same_names(char *const *a, char *const *b)
{
    assert_int_equal(a != NULL, b != NULL);
    for (int i = 0; a && (a[i] || b[i]); i++) assert_string_equal(a[i] ? a[i] : "-", b[i] ? b[i] : "-");
}

static void test_written_reads_back(void **state)
{
    (void)state;
    static const char *const names[] = {"lora", "pattern", "dora", "regex", "all-linear"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        PeftConfig a = must_read(names[i]), b;
        assert_int_equal(peft_config_write(&a, scratch), OK);
        assert_int_equal(peft_config_read(&b, scratch), OK);
        assert_true(a.rank == b.rank && a.alpha == b.alpha && a.dropout == b.dropout && a.use_rslora == b.use_rslora &&
                    a.use_dora == b.use_dora && a.fan_in_fan_out == b.fan_in_fan_out && a.n_pattern == b.n_pattern);
        same_names(a.targets, b.targets);
        same_names(a.modules_to_save, b.modules_to_save);
        assert_string_equal(a.targets_regex ? a.targets_regex : "-", b.targets_regex ? b.targets_regex : "-");
        assert_string_equal(a.base_model ? a.base_model : "-", b.base_model ? b.base_model : "-");
        assert_string_equal(a.task_type ? a.task_type : "CAUSAL_LM", b.task_type);
        if (streq(names[i], "pattern")) check_modules(&b);
        peft_config_free(&a);
        peft_config_free(&b);
    }
}

// ---- refused ----------------------------------------------------------------------------------------------------------
#define WITH(members) "{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"]," members "}"

static void test_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "no JSON"},
        {"{\"peft_type\":\"LORA\"", "c.json:1: no JSON"},
        {"[]", "not a JSON object"},
        {"{}", "peft_type is missing"},
        {"{\"peft_type\":\"LORA\",\"peft_type\":\"LORA\"}", "duplicate object key"},
        {"{\"peft_type\":\"IA3\"}", "peft_type is \"IA3\""},
        {"{\"peft_type\":\"PREFIX_TUNING\"}", "peft_type is \"PREFIX_TUNING\""},
        {"{\"peft_type\":\"ADALORA\"}", "peft_type is \"ADALORA\""},
        {"{\"peft_type\":\"LORA\"}", "target_modules is missing"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":null}", "target_modules is missing"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[]}", "target_modules is empty"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":\"\"}", "target_modules is empty"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":7}", "target_modules is not a list"},
        {"{\"peft_type\":\"LORA\",\"target_modules\":[7]}", "target_modules holds something"},
        {WITH("\"r\":0"), "r is not a number from 1"},
        {WITH("\"r\":-4"), "r is not a number from 1"},
        {WITH("\"r\":1e9"), "r is not a number from 1"},
        {WITH("\"r\":4.5"), "r is not a whole number"},
        {WITH("\"r\":\"4\""), "r is not a number"},
        {WITH("\"lora_alpha\":\"x\""), "lora_alpha is not a number"},
        {WITH("\"lora_dropout\":1.5"), "lora_dropout is not a number from 0 to 1"},
        {WITH("\"use_rslora\":1"), "use_rslora is neither true nor false"},
        {WITH("\"use_dora\":\"yes\""), "use_dora is neither"},
        {WITH("\"bias\":\"all\""), "bias is \"all\""},
        {WITH("\"bias\":\"lora_only\""), "bias is \"lora_only\""},
        {WITH("\"base_model_name_or_path\":3"), "base_model_name_or_path is not a string"},
        {WITH("\"modules_to_save\":\"lm_head\""), "modules_to_save is not a list"},
        {WITH("\"rank_pattern\":[]"), "rank_pattern is not an object"},
        {WITH("\"rank_pattern\":{\"q_proj\":0}"), "rank_pattern: the value of \"q_proj\""},
        {WITH("\"rank_pattern\":{\"q_proj\":2.5}"), "rank_pattern: the value of \"q_proj\""},
        {WITH("\"alpha_pattern\":{\"q_proj\":\"8\"}"), "alpha_pattern: the value of \"q_proj\""},
        {WITH("\"alpha_pattern\":{\"(q_proj\":8}"), "alpha_pattern: \"(q_proj\" is no module name"},
        {WITH("\"rank_pattern\":{\"\":8}"), "rank_pattern: \"\" is no module name"},
        {WITH("\"layers_to_transform\":[0,1]"), "layers_to_transform is set, and is not supported"},
        {WITH("\"layers_to_transform\":3"), "layers_to_transform is set"},
        {WITH("\"exclude_modules\":[\"k_proj\"]"), "exclude_modules is set"},
        {WITH("\"exclude_modules\":\".*k_proj\""), "exclude_modules is set"},
        {WITH("\"target_parameters\":[\"experts.down_proj\"]"), "target_parameters is set"},
        {WITH("\"trainable_token_indices\":[1]"), "trainable_token_indices is set"},
        {WITH("\"layer_replication\":[[0,2]]"), "layer_replication is set"},
        {WITH("\"lora_bias\":true"), "lora_bias is set"},
        {WITH("\"use_qalora\":true"), "use_qalora is set"},
        {WITH("\"alora_invocation_tokens\":[1,2]"), "alora_invocation_tokens is set"},
        {WITH("\"init_lora_weights\":\"pissa\""), "init_lora_weights \"pissa\""},
        {WITH("\"init_lora_weights\":\"olora\""), "init_lora_weights \"olora\""},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        PeftConfig c;
        assert_input_error(peft_config_parse(&c, cases[i][0], strlen(cases[i][0]), "c.json"), cases[i][0], cases[i][1]);
    }
    PeftConfig c;
    assert_input_error(peft_config_read(&c, GOLDEN), "directory", "no adapter_config.json in it");
}

static void test_layers_from_zero_are_set(void **state) // the integer 0 names a layer
{
    (void)state;
    static const char text[] = WITH("\"layers_to_transform\":0");
    PeftConfig c;
    assert_input_error(peft_config_parse(&c, text, strlen(text), "c.json"), text, "layers_to_transform is set");
}

static void test_old_files(void **state) // of PEFT 0.10: fewer keys; names twice; defaults
{
    (void)state;
    static const char text[] =
        WITH("\"r\":null,\"modules_to_save\":[\"score\",\"score\"],\"init_lora_weights\":\"gaussian\","
             "\"loftq_config\":{},\"megatron_core\":\"megatron.core\",\"layers_to_transform\":null");
    static const char *const save[] = {"score"};
    PeftConfig c;
    assert_int_equal(peft_config_parse(&c, text, strlen(text), "c.json"), OK);
    assert_true(c.rank == 8 && c.alpha == 8);
    assert_names(c.modules_to_save, save, 1);
    peft_config_free(&c);
}

// A pattern that would try forever matches nothing, soon.
static void test_pattern_without_end(void **state)
{
    (void)state;
    static const char text[] = WITH("\"r\":4,\"rank_pattern\":{\"(a+)+(b|c)\":2}");
    PeftConfig c;
    int rank;
    double alpha, start = now_ms();
    assert_int_equal(peft_config_parse(&c, text, strlen(text), "c.json"), OK);
    for (int module = 0; module < 20; module++)
        peft_module_rank(&c, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", &rank, &alpha);
    assert_int_equal(rank, 4);
    assert_true(now_ms() - start < 1000);
    peft_config_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lora),      cmocka_unit_test(test_variants),
        cmocka_unit_test(test_patterns),  cmocka_unit_test(test_written_reads_back),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_layers_from_zero_are_set),
        cmocka_unit_test(test_old_files), cmocka_unit_test(test_pattern_without_end),
    };
    return cmocka_run_group_tests(tests, scratch_make, scratch_remove);
}
