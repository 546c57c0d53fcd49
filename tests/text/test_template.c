// Chat templates against goldens of transformers: twenty templates in twenty-nine conversations, snippets of every construct,
// and hostile templates, which must end quickly, small and with a reason.
#include "text_test.h"
#include "text/template.h"

static int render(const char *source, size_t bytes, const json_t *vars, Buf *out)
{
    Template *t;
    TRY(template_parse(&t, source, bytes, "t.jinja"));
    int status = template_render(t, vars, out);
    template_free(t);
    return status;
}

// want: the text, or an object when Python raises
static void check(const char *name, const char *source, size_t bytes, const json_t *vars, const json_t *want)
{
    Buf out = {0};
    error_clear();
    int status = render(source, bytes, vars, &out);
    const char *text = json_string_value(want);
    if (!text && status != E_INPUT)
        fail_msg("%s: no error, but \"%.*s\"", name, (int)out.len, out.data ? out.data : "");
    if (!text && strncmp(error_last()->place, "t.jinja:", 8) != 0)
        fail_msg("%s: no line in \"%s\"", name, error_last()->place);
    if (text && status != OK) fail_msg("%s: %s: %s", name, error_last()->place, error_last()->what);
    if (text && (out.len != json_string_length(want) || memcmp(out.data ? out.data : "", text, out.len) != 0))
        fail_msg("%s:\n got  \"%.*s\"\n want \"%s\"", name, (int)out.len, out.data ? out.data : "", text);
    buf_free(&out);
    error_clear();
}

static json_t *golden_json(const char *name)
{
    size_t bytes;
    char *text = read_golden(name, &bytes);
    json_t *root = parse_json(text, bytes);
    free(text);
    return root;
}

static void templates(void **state)
{
    (void)state;
    json_t *expected = golden_json("templates/expected.json"),
           *conversations = golden_json("templates/conversations.json"), *wanted;
    const char *name;
    int texts = 0;
    json_object_foreach(expected, name, wanted)
    {
        char *file = xasprintf("templates/%s.jinja", name);
        size_t bytes;
        char *source = read_golden(file, &bytes);
        for (size_t i = 0; i < json_array_size(conversations); i++) {
            const json_t *c = json_array_get(conversations, i),
                         *want = json_object_get(wanted, json_string_value(json_object_get(c, "name")));
            char *what = xasprintf("%s, %s", name, json_string_value(json_object_get(c, "name")));
            assert_non_null(want);
            check(what, source, bytes, json_object_get(c, "vars"), want);
            texts += json_is_string(want);
            free(what);
        }
        free(source);
        free(file);
    }
    assert_true(texts > 400);
    json_decref(expected);
    json_decref(conversations);
}

static void snippets(void **state)
{
    (void)state;
    json_t *rows = golden_json("templates/snippets.json"), *vars = golden_json("templates/snippet_vars.json");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *source = json_array_get(json_array_get(rows, i), 0);
        const char *text = json_string_value(source);
        check(text, text, json_string_length(source), vars, json_array_get(json_array_get(rows, i), 1));
    }
    json_decref(rows);
    json_decref(vars);
}

// ---- errors and limits ----------------------------------------------------------------------------------------------
static void expect_error(const char *source, size_t bytes, const char *place, const char *what)
{
    json_t *vars = json_pack("{s:[], s:s}", "messages", "x", "v");
    Buf out = {0};
    buf_puts(&out, "kept");
    error_clear();
    double begin = now_ms();
    if (render(source, bytes, vars, &out) != E_INPUT) fail_msg("no error: %.100s", source);
    if (now_ms() - begin > 5000) fail_msg("%.100s took %.0f ms", source, now_ms() - begin);
    if (place && !streq(error_last()->place, place))
        fail_msg("%.100s: place %s, expected %s", source, error_last()->place, place);
    if (!strstr(error_last()->what, what))
        fail_msg("%.100s: \"%s\" does not say \"%s\"", source, error_last()->what, what);
    assert_int_equal(out.len, 4); // a failed rendering writes nothing
    buf_free(&out);
    json_decref(vars);
    error_clear();
}

static void messages(void **state)
{
    (void)state;
    static const struct {
        const char *source, *place, *what;
    } rows[] = {
        {"{{ raise_exception('Roles must alternate') }}", "t.jinja:1", "Roles must alternate"},
        {"a\n{{ nope.x }}", "t.jinja:2", "'nope' is undefined"},
        {"\n\n{% if x %}\n{{ messages[0].role }}{% endif %}", "t.jinja:4", "has no attribute '0'"},
        {"{{ {}.a.b }}", "t.jinja:1", "'dict object' has no attribute 'a'"},
        {"a\n{% if x %}", "t.jinja:2", "{% elif %} is missing"},
        {"{% include 'x' %}", "t.jinja:1", "unknown or misplaced tag {% include %}"},
        {"{{ x | nosuch }}", "t.jinja:1", "no filter named 'nosuch'"},
        {"{% for a in [1] recursive %}{% endfor %}", "t.jinja:1", "recursive"},
        {"{{ 9223372036854775807 + 1 }}", "t.jinja:1", "64 bits"},
        {"{{ x.upper(1) }}", "t.jinja:1", "at most 0 arguments"},
        {"{{ x.replace('a') }}", "t.jinja:1", "needs the argument 'new'"},
        {"{% break %}", "t.jinja:1", "outside a loop"},
        {"\xff", "t.jinja", "not UTF-8"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_error(rows[i].source, strlen(rows[i].source), rows[i].place, rows[i].what);
}

static void hostile(void **state)
{
    (void)state;
    static const struct {
        const char *source, *what;
    } rows[] = {
        {"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"},
        {"{% for i in range(100001) %}{% endfor %}", "range too big"},
        {"{{ range(10**18) }}", "range too big"},
        {"{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "memory"},
        {"{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", ""},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "memory"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s == "
         "ns.s }}",
         "steps"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
         "steps"},
        {"{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ "
         "ns.s|tojson }}",
         "steps"},
        {"{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
         "nested too deep"},
        {"{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s|tojson }}",
         "nested deeper"},
        {"{% set ns = namespace(s=[]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s == [ns.s] "
         "}}",
         "nested too deep"},
        {"{{ 'a' * 10**9 }}", "steps"},
        {"{{ [0] * 10**9 }}", "steps"},
        {"{{ 'a' * 3000000 }}{{ 'a' * 3000000 }}", "more than 4 MiB"},
        {"{{ ('a' * 1000000)|replace('a', 'b' * 1000000) }}", "steps"},
        {"{{ ('a' * 1000000)|replace('', 'b' * 1000) }}", "steps"},
        {"{{ 'a'|indent(10**9, true) }}", "steps"},
        {"{{ 'a'.center(10**12) }}", "steps"},
        {"{{ '%99999999d' % 1 }}", "steps"},
        {"{{ '{:99999999}'.format(1) }}", "steps"},
        {"{% set s = 'a' * 3000000 %}{% for i in range(99999) %}{{ 'b' in s }}{% endfor %}", "steps"},
        {"{% for i in range(99999) %}{{ ('aa' * 99999).rfind('ab' ~ 'a' * 99999) }}{% endfor %}", ""},
        {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested deeper"},
        {"{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "nested deeper"},
        {"{{ 10**10**10 }}", "64 bits"},
    };
    size_t before = peak_rss_bytes();
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_error(rows[i].source, strlen(rows[i].source), NULL, rows[i].what);
    if (peak_rss_bytes() - before > 400u << 20)
        fail_msg("hostile templates took %zu MiB", (peak_rss_bytes() - before) >> 20);
}

// head, then unit n times, then tail
static void check_repeated(const char *head, const char *unit, int n, const char *tail, const char *what)
{
    Buf b = {0};
    buf_puts(&b, head);
    for (int i = 0; i < n; i++) buf_puts(&b, unit);
    buf_puts(&b, tail);
    expect_error(b.data, b.len, NULL, what);
    buf_free(&b);
}

static void deep_sources(void **state)
{
    (void)state;
    enum { N = 50000 };
    check_repeated("{{ ", "(", N, "", "nested too deep");
    check_repeated("{{ 1", " + (1", 65, "))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))))) }}",
                   "nested deeper than 64");
    check_repeated("{{ ", "-", N, "1 }}", "nested deeper than 64");
    check_repeated("{{ ", "not ", N, "1 }}", "nested deeper than 64");
    check_repeated("{{ 1", " if 1 else 1", N, " }}", "nested deeper than 64");
    check_repeated("", "{% if 1 %}", N, "", "nested deeper than 64");
    check_repeated("", "{% for x in x %}", N, "", "nested deeper than 64");
    check_repeated("{{ 1", "+1", N, " }}", "nested deeper");
    check_repeated("{{ x", ".a", N, " }}", "nested deeper");
    check_repeated("{{ x", "|upper", N, " }}", "nested deeper");
    check_repeated("{{ x", "()", N, " }}", "nested deeper");
    check_repeated("{{ 1", " and 1", N, " }}", "nested deeper");
    check_repeated("", "x", (1 << 20) + 1, "", "at most");
}

static void deep_data(void **state)
{
    (void)state;
    json_t *deep = json_integer(1);
    for (int i = 0; i < 70; i++) deep = json_pack("[o]", deep);
    json_t *vars = json_pack("{s:[], s:o}", "messages", "deep", deep);
    Buf out = {0};
    assert_int_equal(render("{{ deep }}", 10, vars, &out), E_INPUT);
    assert_non_null(strstr(error_last()->what, "nested deeper than 64"));
    error_clear();
    json_decref(vars);
}

// ---- the rest of the interface --------------------------------------------------------------------------------------
static void renders_again(void **state)
{
    (void)state;
    const char *source = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ "
                         "ns.n }}{{ add_generation_prompt }}";
    json_t *vars = json_pack("{s:[{s:s},{s:s}], s:b}", "messages", "role", "user", "role", "assistant",
                             "add_generation_prompt", 1);
    Template *t;
    Buf out = {0};
    assert_int_equal(template_parse(&t, source, strlen(source), "t"), OK);
    for (int i = 0; i < 3; i++) assert_int_equal(template_render(t, vars, &out), OK);
    assert_string_equal(out.data, "2True2True2True"); // appended, and no state left between
    assert_int_equal(template_render(t, json_object_get(vars, "messages"), &out), E_INPUT);
    error_clear();
    buf_free(&out);
    template_free(t);
    json_decref(vars);
}

static void strftime_now(void **state)
{
    (void)state;
    json_t *vars = json_pack("{s:[]}", "messages");
    Buf out = {0};
    const char *source = "{{ strftime_now('%Y')|int > 2023 }} {{ strftime_now('') }}|{{ strftime_now is defined }}";
    assert_int_equal(render(source, strlen(source), vars, &out), OK);
    assert_string_equal(out.data, "True |True");
    buf_free(&out);
    json_decref(vars);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates),     cmocka_unit_test(snippets),     cmocka_unit_test(messages),
        cmocka_unit_test(hostile),       cmocka_unit_test(deep_sources), cmocka_unit_test(deep_data),
        cmocka_unit_test(renders_again), cmocka_unit_test(strftime_now),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
