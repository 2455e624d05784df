// SPDX-License-Identifier: Apache-2.0
// A fiber: a stack of its own and a place to go on from. Stacks are kept for the next launch, so that dropping a fiber
// in the middle of a kernel leaks nothing.
#pragma once

#include <cstddef>

// For functions that never return on a fiber's stack: their frames must leave no ASan redzones behind.
#define SOFTDIFF_SHIM_BARE __attribute__((no_sanitize_address))

namespace softdiff_shim {

class Fiber {
 public:
  Fiber() = default;  // the host's own stack, until a switch leaves it
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Next time it is switched to, `entry` runs at the stack's top; `entry` never returns. `colour` shifts the top, or
  // the frames of all threads would fall into the same few sets of the cache.
  void prepare(void (*entry)(), unsigned colour);
  // Leaves `from` where it is and goes on with `to`. `last`: nothing of `from` will run again.
  static void switch_to(Fiber& from, Fiber& to, bool last);
  static void arrived();  // the first thing on a new stack
  // It was left in the middle of its frames and none of them will return.
  void dropped();

 private:
  void* mapping_ = nullptr;
  void* context_ = nullptr;     // the saved stack pointer, or a ucontext_t
  void* fake_stack_ = nullptr;  // ASan's
  const void* bottom_ = nullptr;
  size_t size_ = 0;
};

}  // namespace softdiff_shim
