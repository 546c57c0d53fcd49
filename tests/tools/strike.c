// strike OPTIONS -- COMMAND...: runs a job under mpirun, sends a signal to one of its processes at a given moment, and sees to it that
// the job ends and nothing of it is left.
//   -r RANK   to this rank      -a  to all ranks      -l  to the launcher      (none: only watches)
//   -s NAME   KILL (default), TERM, USR1, INT, STOP, CONT
//   -f GLOB   once this exists, and then
//   -m MS     so long after the start, or after that
//   -t MS     once more, so much later
//   -w S      the job may take so long (60)
// Exit code: the command's (128 + N when a signal N ended it); 124 it hung, 125 processes were left behind after 5 s. Either way
// everything of it is killed. It is the reaper of all its descendants, so none can slip away.
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, LEFT_BEHIND_MS = 5000 };
static const struct {
    const char *name;
    int number;
} signals[] = {{"KILL", SIGKILL}, {"TERM", SIGTERM}, {"USR1", SIGUSR1},
               {"INT", SIGINT},   {"STOP", SIGSTOP}, {"CONT", SIGCONT}};

static struct {
    int target; // 'r', 'a', 'l' or 0
    int rank, signal;
    const char *file;
    double after_ms, again_ms, limit_ms;
} want = {.signal = SIGKILL, .again_ms = -1, .limit_ms = 60000};

static pid_t launcher;
static int exit_status = -1; // of the launcher; -1: it runs

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void nap(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000L}, NULL);
}

// ---- the tree of processes ------------------------------------------------------------------------------------------
typedef struct Process {
    pid_t pid, parent;
    bool zombie, ours;
} Process;

static bool read_stat(pid_t pid, Process *p)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    char *end = strrchr(text, ')'), state; // the name may hold anything
    int parent;
    if (!end || sscanf(end + 1, " %c %d", &state, &parent) != 2) return false;
    *p = (Process){pid, parent, state == 'Z', parent == getpid()};
    return true;
}

// All living descendants of this process; parents have been started before their children, but numbers wrap: hence the passes.
static int descendants(pid_t *out)
{
    static Process all[1 << 16];
    int n = 0, found = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; d && (e = readdir(d)) && n < 1 << 16;)
        if (isdigit((unsigned char)*e->d_name)) n += read_stat(atoi(e->d_name), &all[n]);
    if (d) closedir(d);
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n && !all[i].ours; j++)
                if (all[j].ours && all[j].pid == all[i].parent) all[i].ours = more = true;
    }
    for (int i = 0; i < n && found < MOST; i++)
        if (all[i].ours && !all[i].zombie) out[found++] = all[i].pid;
    return found;
}

// PMI_RANK, as the launcher gives it; -1: not a rank. Read as text: the variables are separated by NULs.
static int rank_of(pid_t pid)
{
    char path[64], text[1 << 15];
    snprintf(path, sizeof path, "/proc/%d/environ", pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f) fclose(f);
    text[n] = 0;
    for (size_t i = 0; i < n; i += strlen(text + i) + 1)
        if (strncmp(text + i, "PMI_RANK=", 9) == 0) return atoi(text + i + 9);
    return -1;
}

static bool is_target(pid_t pid)
{
    switch (want.target) {
    case 'r': return rank_of(pid) == want.rank;
    case 'a': return rank_of(pid) >= 0;
    default: return pid == launcher;
    }
}

static int hit(void)
{
    pid_t all[MOST];
    int n = descendants(all), hits = 0;
    for (int i = 0; i < n; i++)
        if (is_target(all[i])) hits += kill(all[i], want.signal) == 0;
    return hits;
}

static void kill_all(const char *why)
{
    pid_t all[MOST];
    int n = descendants(all);
    for (int i = 0; i < n; i++) {
        fprintf(stderr, "strike: process %d %s\n", all[i], why);
        kill(all[i], SIGKILL);
    }
}

// ---- the course of events -------------------------------------------------------------------------------------------
// Reaps what has ended; false when nothing is left.
static bool reap(void)
{
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == launcher) exit_status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        if (pid == 0) return true;
        if (pid < 0) return false;
    }
}

static bool exists(const char *pattern)
{
    glob_t g;
    bool found = glob(pattern, 0, NULL, &g) == 0;
    globfree(&g);
    return found;
}

static void usage(void)
{
    fprintf(stderr, "usage: see the head of strike.c\n");
    exit(2);
}

static void read_options(int argc, char **argv)
{
    for (int c; (c = getopt(argc, argv, "+r:als:f:m:t:w:")) != -1;) {
        switch (c) {
        case 'r': want.rank = atoi(optarg); // fall through
        case 'a':
        case 'l': want.target = c; break;
        case 's':
            want.signal = 0;
            for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
                if (strcmp(signals[i].name, optarg) == 0) want.signal = signals[i].number;
            if (!want.signal) usage();
            break;
        case 'f': want.file = optarg; break;
        case 'm': want.after_ms = atof(optarg); break;
        case 't': want.again_ms = atof(optarg); break;
        case 'w': want.limit_ms = atof(optarg) * 1e3; break;
        default: usage();
        }
    }
    if (optind >= argc) usage();
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    double start = now_ms(), due = want.file ? -1 : start + want.after_ms;
    launcher = fork();
    if (launcher == 0) {
        execvp(argv[optind], argv + optind);
        _exit(127);
    }
    while (reap() && exit_status < 0) {
        double now = now_ms();
        if (now - start > want.limit_ms) {
            kill_all("hung and was killed");
            return 124;
        }
        if (due < 0 && want.file && exists(want.file)) due = now + want.after_ms;
        if (want.target && due >= 0 && now >= due && hit()) { // not there yet: once it is
            if (want.again_ms < 0) want.target = 0;
            due = now + want.again_ms;
            want.again_ms = -1;
        }
        nap(1);
    }
    for (double end = now_ms(); reap(); nap(1)) {
        if (now_ms() - end < LEFT_BEHIND_MS) continue;
        kill_all("was left behind");
        return 125;
    }
    return exit_status;
}
