// The run directory: who may write to it, and what its files hold. Every rank runs every test; rank 0 looks
// at the files.
#include "io/rundir.h"
#include <fcntl.h>
#include <jansson.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static Comm *world;
static int rank;
static char *output; // a fresh directory for each test

static const char *in_output(const char *name)
{
    return tmpf("%s/%s", output, name);
}

static int open_run(RunDir **r, bool resume, bool force)
{
    return rundir_open(r, world, output, resume, force);
}

static void put(const char *name, const char *text)
{
    if (rank == 0) assert_int_equal(file_write_atomic(in_output(name), text, strlen(text)), OK);
    comm_barrier(world);
}

static void holds(const char *name, const char *want)
{
    char *text;
    comm_barrier(world);
    assert_int_equal(file_read(in_output(name), 1 << 20, &text, NULL), OK);
    assert_string_equal(text, want);
    free(text);
    comm_barrier(world);
}

static void test_a_new_run(void **state)
{
    (void)state;
    RunDir *r;
    if (rank == 0) remove_tree(output); // it is made
    comm_barrier(world);
    assert_int_equal(open_run(&r, false, false), OK);
    assert_string_equal(rundir_path(r), output);
    assert_int_equal(rundir_write(r, "recipe.yaml", "seed: 1\n", 8), OK);
    holds("recipe.yaml", "seed: 1\n");
    rundir_close(r);
    rundir_close(NULL);
}

static void test_status(void **state)
{
    (void)state;
    RunDir *r;
    assert_int_equal(open_run(&r, false, false), OK);
    assert_int_equal(rundir_status(r, "running", 0, 0, 0, NULL), OK);
    assert_int_equal(rundir_status(r, "failed", 1, 3, 1234567890123, "loss is \"nan\"\n"), OK);
    comm_barrier(world);
    json_t *j = json_load_file(in_output("status.json"), JSON_REJECT_DUPLICATES, NULL);
    assert_string_equal(json_string_value(json_object_get(j, "state")), "failed");
    assert_int_equal(json_integer_value(json_object_get(j, "code")), 1);
    assert_int_equal(json_integer_value(json_object_get(j, "rank")), 3);
    assert_true(json_integer_value(json_object_get(j, "step")) == 1234567890123);
    assert_string_equal(json_string_value(json_object_get(j, "reason")), "loss is \"nan\"\n");
    const char *utc = json_string_value(json_object_get(j, "updated_utc"));
    assert_true(strlen(utc) == 20 && utc[10] == 'T' && utc[19] == 'Z');
    assert_int_equal(json_object_size(j), 6);
    json_decref(j);
    rundir_close(r);
}

static void test_metrics_and_rewinding(void **state)
{
    (void)state;
    RunDir *r;
    put("metrics.jsonl", "{\"step\": 1, \"loss\": 2}\n{\"note\": \"no step\"}\n{\"step\": 2}\n"
                         "{\"step\": 3}\nnot JSON\n[1]\n{\"step\": 2, \"eval/loss\": 1}\n{\"step\": 1, \"cut off");
    assert_int_equal(open_run(&r, true, false), OK);
    assert_int_equal(rundir_rewind(r, 2, 2), OK);
    holds("metrics.jsonl",
          "{\"step\": 1, \"loss\": 2}\n{\"note\": \"no step\"}\n{\"step\": 2}\n{\"step\": 2, \"eval/loss\": 1}\n");
    assert_int_equal(rundir_metric(r, "\"step\": 3, \"loss\": 0.5"), OK);
    assert_int_equal(rundir_metric(r, "\"step\": 4"), OK);
    assert_int_equal(rundir_rewind(r, 1, 1), OK);
    assert_int_equal(rundir_metric(r, "\"step\": 2"), OK);
    holds("metrics.jsonl", "{\"step\": 1, \"loss\": 2}\n{\"note\": \"no step\"}\n{\"step\": 2}\n");
    assert_int_equal(rundir_rewind(r, 99, 99), OK); // nothing to drop
    holds("metrics.jsonl", "{\"step\": 1, \"loss\": 2}\n{\"note\": \"no step\"}\n{\"step\": 2}\n");
    rundir_close(r);
}

// A run that ended with an evaluation, and was killed before it was done, evaluates again.
static void test_rewinding_evaluations(void **state)
{
    (void)state;
    RunDir *r;
    put("metrics.jsonl",
        "{\"step\": 1, \"eval/loss\": 1}\n{\"step\": 2, \"loss\": 2}\n{\"step\": 2, \"eval/loss\": 1}\n");
    assert_int_equal(open_run(&r, true, false), OK);
    assert_int_equal(rundir_rewind(r, 2, 1), OK);
    holds("metrics.jsonl", "{\"step\": 1, \"eval/loss\": 1}\n{\"step\": 2, \"loss\": 2}\n");
    rundir_close(r);
}

// What a killed run was about to write goes; files of like names that are the user's stay.
static void test_unfinished_files_go(void **state)
{
    (void)state;
    RunDir *r;
    put("status.json.tmp-123", "{");
    put("metrics.jsonl.tmp-9", "");
    put("notes.tmp-1", "mine");
    put("status.json.old", "mine");
    assert_int_equal(open_run(&r, true, false), OK);
    comm_barrier(world);
    assert_false(path_exists(in_output("status.json.tmp-123")));
    assert_false(path_exists(in_output("metrics.jsonl.tmp-9")));
    holds("notes.tmp-1", "mine");
    holds("status.json.old", "mine");
    rundir_close(r);
}

static void test_rewinding_nothing(void **state)
{
    (void)state;
    RunDir *r;
    assert_int_equal(open_run(&r, true, false), OK);
    assert_int_equal(rundir_rewind(r, 5, 5), OK);
    comm_barrier(world);
    assert_false(path_exists(in_output("metrics.jsonl")));
    rundir_close(r);
}

// A directory that holds a run is neither mixed into nor silently overwritten.
static void test_another_runs_directory(void **state)
{
    (void)state;
    static const char *const traces[] = {"recipe.yaml", "metrics.jsonl", "checkpoints"};
    for (size_t i = 0; i < COUNT_OF(traces); i++) {
        RunDir *r = NULL;
        put(traces[i], "{\"step\": 1}\n");
        assert_int_equal(open_run(&r, false, false), E_INPUT);
        if (rank == 0) {
            assert_string_equal(error_last()->place, output);
            assert_non_null(strstr(error_last()->hint, "--resume"));
            assert_non_null(strstr(error_last()->hint, "--force"));
        }
        error_clear();
        assert_int_equal(open_run(&r, true, false), OK);
        rundir_close(r);
        comm_barrier(world);
        assert_true(path_exists(in_output(traces[i])));
        comm_barrier(world);
        if (rank == 0) assert_int_equal(remove_tree(in_output(traces[i])), OK);
    }
}

static void test_force_starts_over(void **state)
{
    (void)state;
    RunDir *r;
    if (rank == 0) {
        assert_int_equal(make_dirs(in_output("checkpoints/step-00000001")), OK);
        assert_int_equal(make_dirs(in_output("adapter")), OK);
        assert_int_equal(make_dirs(in_output("model")), OK);
        assert_int_equal(make_dirs(in_output("elsewhere")), OK);
        assert_int_equal(symlink("../elsewhere", in_output("adapter/link")), 0);
    }
    comm_barrier(world);
    put("metrics.jsonl", "{\"step\": 1}\n");
    put("notes.txt", "the user's own");
    put("elsewhere/file", "also");
    put("checkpoints/step-00000001/state.h5", "old");
    assert_int_equal(open_run(&r, false, true), OK);
    assert_false(path_exists(in_output("metrics.jsonl")));
    assert_false(path_exists(in_output("checkpoints")));
    assert_false(path_exists(in_output("adapter")));
    assert_true(path_is_dir(in_output("model")));
    holds("notes.txt", "the user's own");
    holds("elsewhere/file", "also"); // a link is removed, not what it leads to
    rundir_close(r);
}

// ---- the lock ---------------------------------------------------------------------------------------------
// Another process that holds the lock for so long, as a run would.
static pid_t hold_lock(int seconds)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        int fd = open(in_output(".lock"), O_RDWR | O_CREAT, 0644);
        if (fd < 0 || flock(fd, LOCK_EX) < 0 || write(fd, "pid 42 on elsewhere\n", 20) != 20) _exit(1);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        sleep((unsigned)seconds);
        _exit(0);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return child;
}

static void test_a_second_run_is_locked_out(void **state)
{
    (void)state;
    RunDir *r = NULL;
    pid_t holder = rank == 0 ? hold_lock(60) : 0;
    double start = now_ms();
    assert_int_equal(open_run(&r, true, true), E_INPUT);
    assert_null(r);
    assert_in_range((int)(now_ms() - start), 2900, 20000);
    if (rank == 0) {
        assert_non_null(strstr(error_last()->what, "pid 42 on elsewhere"));
        kill(holder, SIGKILL);
        assert_int_equal(waitpid(holder, NULL, 0), holder);
    }
    error_clear();
    assert_int_equal(open_run(&r, true, false), OK); // the lock goes with its holder
    rundir_close(r);
}

// Ranks of a run that is just ending may live a moment longer than their launcher.
static void test_a_run_that_is_ending_is_waited_for(void **state)
{
    (void)state;
    RunDir *r;
    pid_t holder = rank == 0 ? hold_lock(1) : 0;
    assert_int_equal(open_run(&r, true, false), OK);
    if (rank == 0) waitpid(holder, NULL, 0);
    rundir_close(r);
}

static void test_the_lock_is_given_back(void **state)
{
    (void)state;
    RunDir *r;
    for (int i = 0; i < 3; i++) {
        double start = now_ms();
        assert_int_equal(open_run(&r, true, false), OK);
        assert_true(now_ms() - start < 2000);
        rundir_close(r);
        comm_barrier(world);
    }
}

// ---- frame ------------------------------------------------------------------------------------------------
static int open_output(void **state)
{
    (void)state;
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
    log_set_rank(rank, comm_size(world));
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
        IN_OUTPUT(test_a_new_run),
        IN_OUTPUT(test_status),
        IN_OUTPUT(test_metrics_and_rewinding),
        IN_OUTPUT(test_rewinding_evaluations),
        IN_OUTPUT(test_unfinished_files_go),
        IN_OUTPUT(test_rewinding_nothing),
        IN_OUTPUT(test_another_runs_directory),
        IN_OUTPUT(test_force_starts_over),
        IN_OUTPUT(test_a_second_run_is_locked_out),
        IN_OUTPUT(test_a_run_that_is_ending_is_waited_for),
        IN_OUTPUT(test_the_lock_is_given_back),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
