// findings: what was found, and source lines for addresses (by addr2line, which comes with the compiler).
#include "exec.h"
#include "../check/check.h"
#include <dlfcn.h>
#include <map>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <string>
#include <unistd.h>
#include <vector>

namespace cudahost
{
enum { KEPT = 64 };
static std::vector<CudahostFinding> found;

void finding(CudahostKind kind, const char *fmt, ...)
{
    CudahostFinding f = {};
    f.kind = kind;
    int n = 0;
    if (now && now != &block.thread[MAX_THREADS])
        n = snprintf(f.text, sizeof f.text, "block (%u,%u,%u) thread %d: ", visible.block.x, visible.block.y,
                     visible.block.z, now->id);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f.text + n, sizeof f.text - n, fmt, ap);
    va_end(ap);
    if (found.size() < KEPT) found.push_back(f);
}

// "elementwise.cu:40, inlined at elementwise.cu:52": the innermost place first, without directories
static std::string resolve(const void *pc)
{
    Dl_info info;
    if (!dladdr(pc, &info) || !info.dli_fname) return "?";
    // The executable's name may be relative to a directory that has been left.
    const char *file = access(info.dli_fname, R_OK) ? "/proc/self/exe" : info.dli_fname;
    char command[600], line[512];
    snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%tx 2>/dev/null", file,
             (const char *)pc - 1 - (const char *)info.dli_fbase);
    FILE *p = popen(command, "r");
    std::string text;
    while (p && fgets(line, sizeof line, p)) {
        line[strcspn(line, "\n(")] = 0;
        const char *base = strrchr(line, '/');
        base = base ? base + 1 : line;
        if (strstr(base, "shim.h") || strstr(base, "emu.h") || strstr(base, "cuda_bf16.hpp")) continue;
        std::string step(base);
        while (!step.empty() && step.back() == ' ') step.pop_back();
        text += text.empty() ? step : ", inlined at " + step;
    }
    if (p) pclose(p);
    if (!text.empty() && text[0] != '?') return text;
    snprintf(line, sizeof line, "%s+0x%tx", info.dli_sname ? info.dli_sname : "?",
             (const char *)pc - (const char *)info.dli_fbase);
    return line;
}

const char *where_pc(const void *pc)
{
    static std::map<const void *, std::string> known;
    auto it = known.find(pc);
    if (it == known.end()) it = known.emplace(pc, resolve(pc)).first;
    return it->second.c_str();
}

const char *where(Where at)
{
    static char ring[8][256];
    static int next;
    const char *base = strrchr(at.file, '/'), *detail = at.pc ? where_pc(at.pc) : "?";
    char *out = ring[next++ % 8], plain[200];
    snprintf(plain, sizeof plain, "%.150s:%d", base ? base + 1 : at.file, at.line);
    if (!strncmp(detail, plain, strlen(plain)))
        snprintf(out, sizeof ring[0], "%s", detail);
    else
        snprintf(out, sizeof ring[0], "%s", plain);
    return out;
}
} // namespace cudahost

using namespace cudahost;

const char *cudahost_kind_name(CudahostKind kind)
{
    static const char *const names[] = {"launch",        "divergence", "deadlock", "mask",     "misaligned",
                                        "out of bounds", "async",      "race",     "unwritten"};
    static_assert(sizeof names / sizeof names[0] == CUDAHOST_KIND_COUNT, "a name for each");
    return names[kind];
}

size_t cudahost_findings(void)
{
    return found.size();
}

const CudahostFinding *cudahost_finding(size_t i)
{
    return &found[i];
}

void cudahost_clear(void)
{
    found.clear();
    counts = {};
    check_clear();
}
