// symbols: what the symbol table of this program (or library) says of kernels. Their __shared__ variables are thread_local statics of
// functions (shim.h), which nothing else in its C++ is, so their symbols give places and sizes. (A section of their own would do too, but
// GCC puts the statics of templates where it likes.) And kernels' names, mangled as nvcc mangles them.
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
#include <unordered_map>
#include <vector>

namespace cudahost
{
typedef ElfW(Ehdr) Header;
typedef ElfW(Shdr) Section;
typedef ElfW(Sym) Symbol;
typedef ElfW(Addr) Address;

static std::vector<Variable> variables; // by address
static std::unordered_map<const void *, std::string> kernel_names;

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

static void add_symbol(const Symbol *s, const char *name, Address base, unsigned char *tls)
{
    const int type = ELF64_ST_TYPE(s->st_info);
    const bool guard = !strncmp(name, "_ZGVZ", 5);
    if (type == STT_TLS && (guard || !strncmp(name, "_ZZ", 3)))
        variables.push_back({tls + s->st_value, s->st_size, guard, guard ? "" : short_name(name), name, nullptr});
    if (type != STT_FUNC) return;
    auto kernel = kernel_names.find((const void *)(base + s->st_value));
    if (kernel != kernel_names.end()) kernel->second = name;
}

static void add_symbols(const unsigned char *file, Address base, unsigned char *tls)
{
    const Header *header = (const Header *)file;
    const Section *section = (const Section *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (section[i].sh_type != SHT_SYMTAB) continue;
        const Symbol *s = (const Symbol *)(file + section[i].sh_offset), *end = s + section[i].sh_size / sizeof *s;
        const char *names = (const char *)file + section[section[i].sh_link].sh_offset;
        for (; s < end; s++) add_symbol(s, names + s->st_name, base, tls);
    }
}

static int add_module(struct dl_phdr_info *info, size_t, void *)
{
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, at = (uintptr_t)&visible;
        ours = ours || (info->dlpi_phdr[i].p_type == PT_LOAD && at >= from && at < from + info->dlpi_phdr[i].p_memsz);
    }
    if (!ours) return 0;
    struct stat st;
    const int fd = open(info->dlpi_name[0] ? info->dlpi_name : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
    void *file =
        fd >= 0 && !fstat(fd, &st) ? mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
    if (file == MAP_FAILED) abort();
    add_symbols((const unsigned char *)file, info->dlpi_addr, (unsigned char *)info->dlpi_tls_data);
    munmap(file, (size_t)st.st_size);
    close(fd);
    return 1;
}

void symbols_open()
{
    if (!kernel_names.empty()) return;
    for (const CudahostKernel *k = cudahost_kernels(); k; k = k->next) kernel_names.emplace(k->function, "?");
    dl_iterate_phdr(add_module, nullptr);
    for (Variable &v : variables)
        for (const auto &k : kernel_names)
            if (v.symbol.rfind("_Z" + k.second.substr(1) + "E", 0) == 0)
                v.kernel = k.first; // _ZZ4normPfE1x: of _Z4normPf
    std::sort(variables.begin(), variables.end(), [](const Variable &a, const Variable &b) { return a.base < b.base; });
}

const Variable *static_at(const void *p)
{
    const unsigned char *c = (const unsigned char *)p;
    auto it = std::upper_bound(variables.begin(), variables.end(), c,
                               [](const unsigned char *q, const Variable &v) { return q < v.base; });
    return it != variables.begin() && c < (it - 1)->base + (it - 1)->bytes ? &*(it - 1) : nullptr;
}

void statics_poison(const void *kernel, int value)
{
    for (const Variable &v : variables)
        if (!v.guard && (!v.kernel || v.kernel == kernel)) memset(v.base, value, v.bytes);
}

unsigned char *statics_base(size_t *bytes)
{
    *bytes = variables.empty() ? 0 : (size_t)(variables.back().base + variables.back().bytes - variables[0].base);
    return variables.empty() ? nullptr : variables[0].base;
}
} // namespace cudahost

const char *cudahost_kernel_name(const CudahostKernel *kernel)
{
    cudahost::symbols_open();
    return cudahost::kernel_names[kernel->function].c_str();
}
