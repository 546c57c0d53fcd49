#include "fault.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum Kind { NONE, KILL, HANG, SPOIL } Kind;

static struct {
    Kind kind;
    long long step;
    int rank;
    char place[16];
} fault;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void read_environment(void)
{
    const char *text = getenv("ATTUNE_FAULT");
    char kind[8];
    int end = 0;
    if (!text) return;
    strcpy(fault.place, "step");
    int n = sscanf(text, "%7[a-z]@step=%lld,rank=%d%n,at=%15[a-z]%n", kind, &fault.step, &fault.rank, &end, fault.place,
                   &end);
    if (n >= 3 && !text[end])
        fault.kind = streq(kind, "kill") ? KILL : streq(kind, "hang") ? HANG : streq(kind, "nan") ? SPOIL : NONE;
    if (!fault.kind) log_warn("ATTUNE_FAULT=%s: not understood; KIND@step=N,rank=R[,at=PLACE] was expected", text);
}

bool fault_here(const char *place, int64_t step, int rank)
{
    pthread_once(&once, read_environment);
    if (fault.kind == NONE || fault.step != step || fault.rank != rank || !streq(fault.place, place)) return false;
    if (fault.kind == KILL) kill(getpid(), SIGKILL);
    while (fault.kind == HANG) pause();
    return fault.kind == SPOIL;
}
