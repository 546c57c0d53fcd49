// fiber: stacks, and switching between them. On x86-64 a switch saves what the ABI says a call preserves; elsewhere (or with
// CUDAHOST_UCONTEXT) ucontext does it, which is slower: it asks the kernel about signals.
// Frames of fibers that end, or are given up with their launch, are simply left: kernels own nothing that needs a destructor.
#include "exec.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__x86_64__) && !defined(CUDAHOST_UCONTEXT)
#define OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace cudahost
{
#if defined(__SANITIZE_ADDRESS__)
enum { STACK_BYTES = 512 << 10 };
#else
enum { STACK_BYTES = 128 << 10 };
#endif

size_t fiber_stack_bytes()
{
    return STACK_BYTES;
}

void fibers_open()
{
    if (block.thread[0].stack) return;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), each = STACK_BYTES + page;
    void *all =
        mmap(nullptr, each * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) abort();
    for (int i = 0; i < MAX_THREADS; i++) {
        unsigned char *guard = (unsigned char *)all + i * each;
        if (mprotect(guard, page, PROT_NONE)) abort();
        block.thread[i].stack = guard + page;
    }
}

// Frames that were left are still marked by AddressSanitizer: those of the executor below the kernel's each time, all that there
// were when a launch was given up.
static void forget_frames(Thread *t, size_t bytes)
{
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(t->stack + STACK_BYTES - bytes, bytes);
#else
    (void)t, (void)bytes;
#endif
}

void fibers_left()
{
    for (int i = 0; i < block.threads; i++) forget_frames(&block.thread[i], STACK_BYTES);
}

#if OWN_SWITCH
extern "C" void cudahost_switch(void **save, void *to);
__asm__(R"(
    .text
    .globl cudahost_switch
    .hidden cudahost_switch
    .type cudahost_switch, @function
cudahost_switch:
    .cfi_startproc
    endbr64
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
    .cfi_endproc
    .size cudahost_switch, .-cudahost_switch
)");

void fiber_prepare(Thread *t, void (*entry)())
{
    forget_frames(t, 4096);
    void **sp = (void **)(t->stack + STACK_BYTES);
    *--sp = nullptr; // a return address for entry, which never returns; and its alignment
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    t->sp = sp;
}

static void change(Thread *from, Thread *to)
{
    cudahost_switch(&from->sp, to->sp);
}
#else
static ucontext_t contexts[MAX_THREADS + 1];

void fiber_prepare(Thread *t, void (*entry)())
{
    forget_frames(t, 4096);
    ucontext_t *c = &contexts[t - block.thread];
    getcontext(c);
    c->uc_stack.ss_sp = t->stack;
    c->uc_stack.ss_size = STACK_BYTES;
    c->uc_link = nullptr;
    makecontext(c, entry, 0);
}

static void change(Thread *from, Thread *to)
{
    swapcontext(&contexts[from - block.thread], &contexts[to - block.thread]);
}
#endif

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer must know the stack that it comes to, and what of a dead fiber's it has marked.
static void host_stack(const void **low, size_t *bytes)
{
    pthread_attr_t a;
    pthread_getattr_np(pthread_self(), &a);
    void *p;
    pthread_attr_getstack(&a, &p, bytes);
    pthread_attr_destroy(&a);
    *low = p;
}

void fiber_switch(Thread *from, Thread *to, bool ends)
{
    const void *low = to->stack;
    size_t bytes = STACK_BYTES;
    if (to == &block.thread[MAX_THREADS]) host_stack(&low, &bytes);
    __sanitizer_start_switch_fiber(ends ? nullptr : &from->fake_stack, low, bytes);
    change(from, to);
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
}

void fiber_began()
{
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}
#else
void fiber_switch(Thread *from, Thread *to, bool)
{
    change(from, to);
}
void fiber_began() {}
#endif
} // namespace cudahost
