// runtime/track/progress.c with stderr on a pipe, and on a pseudo-terminal.
#define _GNU_SOURCE
#include "track/progress.h"
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <cmocka.h> // last: its fail() hides ours

typedef struct Capture {
    int saved, reader, own; // stderr's original; where to read; the end that stderr stands for
} Capture;

static Capture begin(bool terminal, int columns)
{
    Capture c = {.saved = dup(STDERR_FILENO)};
    int end[2];
    if (terminal) {
        end[0] = posix_openpt(O_RDWR | O_NOCTTY);
        assert_true(end[0] >= 0 && grantpt(end[0]) == 0 && unlockpt(end[0]) == 0);
        end[1] = open(ptsname(end[0]), O_RDWR | O_NOCTTY);
        struct winsize w = {.ws_row = 24, .ws_col = (unsigned short)columns};
        assert_int_equal(ioctl(end[1], TIOCSWINSZ, &w), 0);
    } else {
        assert_int_equal(pipe(end), 0);
    }
    fcntl(end[0], F_SETFL, O_NONBLOCK);
    dup2(end[1], STDERR_FILENO);
    c.reader = end[0];
    c.own = end[1];
    return c;
}

static char *finish(Capture c)
{
    Buf text = {0};
    char part[4096];
    buf_puts(&text, "");
    for (ssize_t n; (n = read(c.reader, part, sizeof part)) > 0;) buf_put(&text, part, (size_t)n);
    dup2(c.saved, STDERR_FILENO);
    close(c.saved);
    close(c.reader);
    close(c.own);
    return text.data;
}

static int lines(const char *s)
{
    int n = 0;
    for (; *s; s++) n += *s == '\n';
    return n;
}

static void plain_lines(void **state)
{
    (void)state;
    Capture c = begin(false, 0);
    Progress *p = progress_open("train", 1000);
    for (int i = 1; i <= 1000; i++) progress_step(p, i, 2.0, 600, "lr 2e-04");
    progress_close(p);
    char *s = finish(c);
    assert_null(strchr(s, '\033'));
    assert_null(strchr(s, '\r'));
    assert_in_range(lines(s), 20, 23); // first, last, and each 5 %
    assert_non_null(strstr(s, "train   0%  1/1000  loss 2.000 (now 2.000)  600.0 tok/s  lr 2e-04"));
    assert_non_null(strstr(s, "train 100%  1000/1000"));
    free(s);
}

// Fewer steps than 5 % marks: the first and the last, nothing twice
static void plain_few_steps(void **state)
{
    (void)state;
    Capture c = begin(false, 0);
    Progress *p = progress_open("eval", 3);
    for (int i = 1; i <= 3; i++) progress_step(p, i, NAN, 0, NULL);
    progress_close(p);
    char *s = finish(c);
    assert_int_equal(lines(s), 2);
    assert_null(strstr(s, "loss"));
    assert_null(strstr(s, "tok/s"));
    free(s);
}

static void stopped_early(void **state)
{
    (void)state;
    Capture c = begin(false, 0);
    Progress *p = progress_open("train", 1000);
    progress_start_at(p, 500);
    for (int i = 501; i <= 510; i++) progress_step(p, i, 1, 1, NULL);
    progress_note(p, "stopped by %s", "SIGTERM");
    progress_close(p);
    progress_step(NULL, 1, 1, 1, NULL);
    progress_note(NULL, "nothing");
    progress_close(NULL);
    char *s = finish(c);
    assert_non_null(strstr(s, "501/1000"));
    assert_non_null(strstr(s, "stopped by SIGTERM\n"));
    assert_non_null(strstr(s, "510/1000")); // where it stopped is shown
    free(s);
}

static void smoothed_loss(void **state)
{
    (void)state;
    Capture c = begin(false, 0);
    Progress *p = progress_open("train", 2);
    progress_step(p, 1, 4.0, 0, NULL);
    progress_step(p, 2, 2.0, 0, NULL);
    progress_close(p);
    char *s = finish(c);
    assert_non_null(strstr(s, "loss 4.000 (now 4.000)"));
    assert_non_null(strstr(s, "loss 2.947 (now 2.000)")); // (0.9·0.1·4 + 0.1·2) / (1 − 0.9²)
    free(s);
}

// Columns that the last drawn line takes: characters without escape sequences
static int columns_of(const char *line)
{
    int n = 0;
    for (const char *s = line; *s && *s != '\r' && *s != '\n'; s++) {
        if (*s == '\033') {
            while (*s && !strchr("mK", *s)) s++;
            continue;
        }
        n += ((unsigned char)*s & 0xc0) != 0x80;
    }
    return n;
}

static char *draw_on_terminal(int columns)
{
    Capture c = begin(true, columns);
    Progress *p = progress_open("train", 10);
    progress_step(p, 1, 1.5, 1234, "lr 1.0e-04");
    progress_note(p, "a line that stays");
    progress_step(p, 10, 1.25, 1234, "lr 1.0e-04");
    progress_close(p);
    return finish(c);
}

static void on_a_terminal(void **state)
{
    (void)state;
    setenv("LC_ALL", "C.UTF-8", 1);
    unsetenv("NO_COLOR");
    setenv("TERM", "xterm", 1);
    int widths[] = {20, 40, 60, 80, 100, 300};
    for (size_t i = 0; i < COUNT_OF(widths); i++) {
        char *s = draw_on_terminal(widths[i]), *last = strrchr(s, '\r');
        assert_non_null(strstr(s, "\r\033[Ka line that stays\r\n")); // the terminal turns \n into \r\n
        assert_non_null(last);
        for (char *line = strchr(s, '\r'); line; line = strchr(line + 1, '\r'))
            assert_true(columns_of(line + 1) < widths[i]); // never wraps
        assert_non_null(strstr(s, "train 100%"));
        if (widths[i] >= 80) assert_non_null(strstr(s, "\033[32m━━━"));
        free(s);
    }
}

static void without_colour_or_utf8(void **state)
{
    (void)state;
    setenv("LC_ALL", "C", 1);
    setenv("NO_COLOR", "1", 1);
    setenv("TERM", "xterm", 1);
    char *s = draw_on_terminal(100);
    assert_null(strstr(s, "\033[3"));
    assert_non_null(strstr(s, "####"));
    for (char *c = s; *c; c++) assert_true((unsigned char)*c < 128);
    free(s);
    setenv("TERM", "dumb", 1); // no redrawing either
    s = draw_on_terminal(100);
    assert_null(strchr(s, '\033'));
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_lines),   cmocka_unit_test(plain_few_steps), cmocka_unit_test(stopped_early),
        cmocka_unit_test(smoothed_loss), cmocka_unit_test(on_a_terminal),   cmocka_unit_test(without_colour_or_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
