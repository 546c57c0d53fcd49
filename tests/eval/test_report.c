// runtime/eval/report.c and chart.c: the page holds what the run directory holds, escaped, and loads nothing.
#define _GNU_SOURCE
#include "eval/chart.h"
#include "eval/report.h"
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h> // last: its fail() hides ours

static char dir[] = "/tmp/attune-report-XXXXXX";

static int make_dir(void **state)
{
    (void)state;
    strcpy(dir + strlen(dir) - 6, "XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    static const char *const files[] = {"metrics.jsonl",  "status.json", "eval.json",
                                        "eval-base.json", "recipe.yaml", "report.html"};
    for (size_t i = 0; i < COUNT_OF(files); i++) unlink(tmpf("%s/%s", dir, files[i]));
    return rmdir(dir);
}

static void put_file(const char *name, const char *text)
{
    FILE *f = fopen(tmpf("%s/%s", dir, name), "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static char *report(const char *machine)
{
    char *page;
    size_t bytes;
    assert_int_equal(report_write(dir, NULL, machine), OK);
    assert_int_equal(file_read(tmpf("%s/report.html", dir), 1 << 26, &page, &bytes), OK);
    assert_int_equal(strlen(page), bytes);
    assert_true(utf8_valid(page, bytes, NULL));
    return page;
}

static void state_that_is_to_come(void **state)
{
    (void)state;
    char *page;
    size_t bytes;
    put_file("status.json", "{\"state\": \"running\", \"reason\": \"why\"}");
    assert_int_equal(report_write(dir, "completed", ""), OK);
    assert_int_equal(file_read(tmpf("%s/report.html", dir), 1 << 26, &page, &bytes), OK);
    assert_non_null(strstr(page, ">✓ completed<"));
    assert_null(strstr(page, "running<"));
    free(page);
}

// Every element that is opened is closed, in order; the few that HTML leaves open are known
static void check_nesting(const char *page)
{
    static const char *const void_elements[] = {"!DOCTYPE", "meta"};
    char open[64][16];
    int depth = 0;
    for (const char *s = page; (s = strchr(s, '<')); s++) {
        char name[16];
        bool closing = s[1] == '/', empty = false;
        size_t n = strcspn(s + 1 + closing, " >/");
        assert_in_range(n, 1, 15);
        snprintf(name, sizeof name, "%.*s", (int)n, s + 1 + closing);
        const char *end = strchr(s, '>');
        assert_non_null(end);
        for (size_t i = 0; i < COUNT_OF(void_elements); i++) empty |= streq(name, void_elements[i]);
        if (empty || end[-1] == '/') continue;
        if (closing) {
            assert_true(depth > 0);
            assert_string_equal(open[--depth], name);
        } else {
            assert_true(depth < 64);
            strcpy(open[depth++], name);
        }
    }
    assert_int_equal(depth, 0);
}

static int count(const char *text, const char *part)
{
    int n = 0;
    for (const char *s = text; (s = strstr(s, part)); s++) n++;
    return n;
}

static void empty_run(void **state)
{
    (void)state;
    char *page = report("");
    check_nesting(page);
    assert_null(strstr(page, "<svg"));
    assert_null(strstr(page, "<h2"));
    free(page);
}

static void whole_run(void **state)
{
    (void)state;
    Buf m = {0};
    for (int i = 1; i <= 2000; i++)
        buf_printf(&m,
                   "{\"step\": %d, \"loss\": %.9g, \"lr\": 2e-4, \"grad_norm\": 1.5, \"tokens_per_s\": 600, "
                   "\"step_ms\": 1500, "
                   "\"rss_bytes\": 640000000}\n%s",
                   i, 1 + 2.0 / i,
                   i % 500 ? "" : tmpf("{\"step\": %d, \"eval/loss\": 1.5, \"eval/rougeL\": 0.%d}\n", i, i));
    buf_puts(&m, "{\"step\": 2001, \"lo"); // torn
    put_file("metrics.jsonl", m.data);
    put_file("status.json", "{\"state\": \"completed\", \"code\": 0, \"rank\": 0, \"step\": 2000, \"reason\": \"\"}");
    put_file("eval-base.json",
             "{\"metrics\": {\"loss\": 3.25, \"rouge1\": 0.125}, \"samples\": [{\"row\": 4, \"reference\": \"R\", "
             "\"output\": \"O4\"}, {\"row\": 7, \"reference\": \"S\", \"output\": \"O7\"}]}");
    put_file("eval.json",
             "{\"metrics\": {\"loss\": 1.75, \"rouge2\": 0.5}, \"samples\": [{\"row\": 7, \"reference\": \"S\", "
             "\"output\": \"T7\"}, {\"row\": 9, \"reference\": \"Q\", \"output\": \"T9\"}]}");
    put_file("recipe.yaml", "method: lora\n");
    char *page = report("a machine");
    check_nesting(page);
    assert_int_equal(count(page, "<svg"), 5); // loss with its validation points, lr, norm, speed; rougeL
    assert_non_null(strstr(page, "✓ completed"));
    assert_non_null(strstr(page, "3 → 1.001")); // training loss
    assert_non_null(strstr(page, "validation 1.5 nats per trained token</title>"));
    assert_non_null(strstr(page, "<th scope=\"row\">loss</th><td>3.25</td><td>1.75</td></tr>"));
    assert_non_null(strstr(page, "<th scope=\"row\">rouge1</th><td>0.125</td><td></td></tr>"));
    assert_non_null(strstr(page, "<th scope=\"row\">rouge2</th><td></td><td>0.5</td></tr>"));
    assert_int_equal(count(page, "class=\"sample\""), 2);
    assert_non_null(
        strstr(page, ">O7</div></div><div class=\"tuned\"><h3>tuned model</h3><div class=\"text\">T7</div>"));
    assert_null(strstr(page, "O4")); // the tuned model has no sample of that row
    assert_non_null(strstr(page, "method: lora"));
    assert_non_null(strstr(page, "a machine"));
    assert_true(strlen(page) < 400000); // 2000 steps are drawn as a few hundred points
    free(page);
    buf_free(&m);
}

// Whatever the files hold, the page has no element, script or address of theirs
static void hostile_text(void **state)
{
    (void)state;
#define EVIL "<script src='https://example.org/x.js'></script>\\\"&\\u0001"
    put_file("metrics.jsonl",
             "{\"step\": 1, \"loss\": 2, \"eval/" EVIL "\": 1}\n{\"step\": 2, \"loss\": 1e300, \"eval/" EVIL "\": 2}\n"
             "[1]\nnull\n{\"step\": \"x\", \"loss\": 1}\n{\"step\": 1e300, \"loss\": 1}\n");
    put_file("status.json", "{\"state\": \"" EVIL "\", \"reason\": \"" EVIL "\"}");
    put_file("eval-base.json", "{\"metrics\": [1], \"samples\": {\"row\": 1}}");
    put_file("eval.json", "{\"metrics\": {\"" EVIL "\": 1, \"x\": \"" EVIL
                          "\", \"y\": [[1]]}, \"samples\": [null, 3, {\"row\": null, "
                          "\"reference\": [], \"output\": \"" EVIL "\"}, {\"row\": 1, \"prompt\": \"" EVIL
                          "\", \"output\": \"" EVIL "\"}]}");
    put_file("recipe.yaml", "# <script>alert(1)</script>");
    char *page = report("<script>");
    check_nesting(page);
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "<SCRIPT"));
    for (const char *s = page; *s; s++) assert_true((unsigned char)*s >= 0x20 || strchr("\n\t\r", *s));
    assert_int_equal(count(page, "src='"), 0); // quotes are escaped too
    assert_non_null(strstr(page, "default-src 'none'"));
    free(page);
}

static void previous_fault_is_kept(void **state)
{
    (void)state;
    (fail)(E_FAILED, "place", NULL, "the loss is not finite");
    put_file("status.json", "not JSON");
    free(report(""));
    assert_string_equal(error_last()->what, "the loss is not finite");
    error_clear();
}

static void no_directory(void **state)
{
    (void)state;
    assert_true(report_write("/nonexistent/run", NULL, "") < 0);
    error_clear();
}

// Axes of any range: one value, zero, tiny, huge, negative; coordinates stay on the canvas
static void axes(void **state)
{
    (void)state;
    static const double ranges[][2] = {{0, 0},        {5, 5},         {1e-9, 2e-9}, {-3, 3},
                                       {-1e99, 1e99}, {1, 1 + 1e-15}, {0, 1e-300},  {1e6, 1e6 + 1}};
    for (size_t i = 0; i < COUNT_OF(ranges); i++) {
        double x[3] = {1, 2, 3}, y[3] = {ranges[i][0], ranges[i][1], ranges[i][0]};
        Series s = {.key = "k", .x = x, .y = y, .n = i % 2 ? 3 : 1};
        Buf out = {0};
        chart_svg(&(Chart){.title = "t", .unit = "", .id = "i", .line = &s, .line_name = "l", .from_zero = i % 3 == 0},
                  &out);
        check_nesting(out.data);
        assert_null(strstr(out.data, "nan"));
        assert_null(strstr(out.data, "inf"));
        assert_in_range(count(out.data, "class=\"end\""), 1, 12);
        for (const char *c = out.data; (c = strstr(c, " cy=\"")); c++) {
            double cy = strtod(c + 5, NULL);
            assert_true(cy >= 0 && cy <= 260);
        }
        buf_free(&out);
    }
}

static void values(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } cases[] = {{0, "0"},          {1.5, "1.5"},
                 {-0.25, "-0.25"},  {999.96, "1000"},
                 {1234.5, "1,234"}, {-1234567, "-1,234,567"},
                 {2e-4, "2e-4"},    {0.001, "0.001"},
                 {1e20, "1e20"},    {-3.14159e-7, "-3.14e-7"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Buf out = {0};
        put_value(&out, cases[i].v);
        assert_string_equal(out.data, cases[i].text);
        buf_free(&out);
    }
}

int main(void)
{
#define IN_DIR(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        IN_DIR(empty_run),
        IN_DIR(whole_run),
        IN_DIR(hostile_text),
        IN_DIR(previous_fault_is_kept),
        IN_DIR(state_that_is_to_come),
        cmocka_unit_test(no_directory),
        cmocka_unit_test(axes),
        cmocka_unit_test(values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
