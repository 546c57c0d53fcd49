// statics: where the __shared__ variables of kernels are. They are thread_local statics of functions (shim.h), which nothing else in this
// program's C++ is, so their symbols give places and sizes. (A section of their own would do too, but GCC puts the statics of
// templates where it likes.)
#include "exec.h"
#include <algorithm>
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

namespace cudahost
{
static std::vector<Variable> variables; // by address

// "x of norm<float>", out of a symbol of the kind _ZZ4normIfEvPfE1x
static std::string short_name(const char *symbol)
{
    int status;
    char *full = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
    if (!full) return symbol;
    const char *last = full;
    for (const char *p = full; (p = strstr(p, "::")); p += 2) last = p + 2;
    const char *function = full;
    if (!strncmp(function, "void ", 5)) function += 5;
    std::string text = std::string(last) + " of " + std::string(function, strcspn(function, "("));
    free(full);
    return text;
}

static void add_symbols(const unsigned char *file, unsigned char *tls)
{
    const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)file;
    const ElfW(Shdr) *section = (const ElfW(Shdr) *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (section[i].sh_type != SHT_SYMTAB) continue;
        const ElfW(Sym) *s = (const ElfW(Sym) *)(file + section[i].sh_offset),
                        *end = s + section[i].sh_size / sizeof *s;
        const char *names = (const char *)file + section[section[i].sh_link].sh_offset;
        for (; s < end; s++) {
            const char *name = names + s->st_name;
            const bool guard = !strncmp(name, "_ZGVZ", 5);
            if (ELF64_ST_TYPE(s->st_info) != STT_TLS || (!guard && strncmp(name, "_ZZ", 3) != 0)) continue;
            variables.push_back({tls + s->st_value, s->st_size, guard, guard ? "" : short_name(name)});
        }
    }
}

static int add_module(struct dl_phdr_info *info, size_t, void *)
{
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, at = (uintptr_t)&visible;
        ours = ours || (info->dlpi_phdr[i].p_type == PT_LOAD && at >= from && at < from + info->dlpi_phdr[i].p_memsz);
    }
    if (!ours || !info->dlpi_tls_data) return ours;
    struct stat st;
    const int fd = open(info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
    void *file =
        fd >= 0 && !fstat(fd, &st) ? mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    if (file == MAP_FAILED) abort();
    add_symbols((const unsigned char *)file, (unsigned char *)info->dlpi_tls_data);
    munmap(file, (size_t)st.st_size);
    close(fd);
    return 1;
}

void statics_open()
{
    static bool open;
    if (open) return;
    open = true;
    dl_iterate_phdr(add_module, nullptr);
    std::sort(variables.begin(), variables.end(), [](const Variable &a, const Variable &b) { return a.base < b.base; });
}

const Variable *static_at(const void *p)
{
    const unsigned char *c = (const unsigned char *)p;
    auto it = std::upper_bound(variables.begin(), variables.end(), c,
                               [](const unsigned char *q, const Variable &v) { return q < v.base; });
    return it != variables.begin() && c < (it - 1)->base + (it - 1)->bytes ? &*(it - 1) : nullptr;
}

void statics_poison(int value)
{
    for (const Variable &v : variables)
        if (!v.guard) memset(v.base, value, v.bytes);
}

unsigned char *statics_base(size_t *bytes)
{
    *bytes = variables.empty() ? 0 : (size_t)(variables.back().base + variables.back().bytes - variables[0].base);
    return variables.empty() ? nullptr : variables[0].base;
}
} // namespace cudahost
