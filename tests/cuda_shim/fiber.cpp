// SPDX-License-Identifier: Apache-2.0
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// SOFTDIFF_SHIM_UCONTEXT tries the other machines' switch here.
#if defined(__x86_64__) && !defined(SOFTDIFF_SHIM_UCONTEXT)
#define SOFTDIFF_SHIM_SWITCH 1
#else
#define SOFTDIFF_SHIM_SWITCH 0
#include <ucontext.h>
#endif

#if SOFTDIFF_SHIM_SWITCH
extern "C" void softdiff_shim_switch(void** save, void* load);
// The registers that a call keeps, and the stack pointer; swapcontext's signal mask would cost two system calls.
asm(R"(
.text
.hidden softdiff_shim_switch
.globl softdiff_shim_switch
.type softdiff_shim_switch, @function
softdiff_shim_switch:
  pushq %rbp
  pushq %rbx
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
  popq %rbx
  popq %rbp
  ret
.size softdiff_shim_switch, .-softdiff_shim_switch
)");
#endif

namespace softdiff_shim {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // ASan's frames are several times the plain ones; pages come when touched

Fiber* left = nullptr;  // what the last switch came from

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

Fiber::~Fiber() {
  if (mapping_ != nullptr) munmap(mapping_, kStackBytes + page());
#if !SOFTDIFF_SHIM_SWITCH
  delete static_cast<ucontext_t*>(context_);
#endif
}

void Fiber::prepare(void (*entry)(), unsigned colour) {
  if (mapping_ == nullptr) {
    void* fresh = mmap(nullptr, kStackBytes + page(), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (fresh == MAP_FAILED) throw std::bad_alloc();
    mapping_ = fresh;
    mprotect(mapping_, page(), PROT_NONE);  // the guard
    bottom_ = static_cast<char*>(mapping_) + page();
    size_ = kStackBytes;
  }
  fake_stack_ = nullptr;
  char* top = static_cast<char*>(mapping_) + page() + kStackBytes - (colour % 64) * 64;
#if SOFTDIFF_SHIM_SWITCH
  // Six registers, the return address, and a word that leaves the stack pointer as a call does.
  auto* frame = reinterpret_cast<uintptr_t*>(top) - 8;
  for (int i = 0; i < 8; ++i) frame[i] = 0;
  frame[6] = reinterpret_cast<uintptr_t>(entry);
  context_ = frame;
#else
  if (context_ == nullptr) context_ = new ucontext_t;
  auto* context = static_cast<ucontext_t*>(context_);
  getcontext(context);
  context->uc_stack.ss_sp = static_cast<char*>(mapping_) + page();
  context->uc_stack.ss_size = static_cast<size_t>(top - static_cast<char*>(context->uc_stack.ss_sp));
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
#endif
}

SOFTDIFF_SHIM_BARE void Fiber::switch_to(Fiber& from, Fiber& to, bool last) {
  left = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#else
  (void)last;
#endif
#if SOFTDIFF_SHIM_SWITCH
  softdiff_shim_switch(&from.context_, to.context_);
#else
  if (from.context_ == nullptr) from.context_ = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(from.context_), static_cast<ucontext_t*>(to.context_));
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, &left->bottom_, &left->size_);
#endif
}

SOFTDIFF_SHIM_BARE void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  // Tells where the stack that was left lies: for the host's own stack there is no other way to know.
  __sanitizer_finish_switch_fiber(nullptr, &left->bottom_, &left->size_);
#endif
}

void Fiber::dropped() {
#if defined(__SANITIZE_ADDRESS__)
  if (mapping_ != nullptr) __asan_unpoison_memory_region(bottom_, size_);
#endif
}

}  // namespace softdiff_shim
