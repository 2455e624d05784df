// SPDX-License-Identifier: Apache-2.0
#include "driver.h"

#include "kernels.h"
#include "parallel.h"
#include "plan_cache.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace softdiff {
namespace {

bool supported(const char* name) {
#if defined(__x86_64__)
  if (std::strcmp(name, "avx512") == 0) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
  if (std::strcmp(name, "avx2") == 0) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#endif
  return std::strcmp(name, "portable") == 0;
}

const Kernels* kernels_named(const char* name) {
  if (!supported(name)) return nullptr;
#if defined(__x86_64__)
  if (std::strcmp(name, "avx512") == 0) return &avx512::kernels;
  if (std::strcmp(name, "avx2") == 0) return &avx2::kernels;
#endif
  return &portable::kernels;
}

const Kernels* best() {
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* kernels = kernels_named(name)) return kernels;
  }
  return &portable::kernels;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{best()};
  return kernels;
}

// A thread's scratch is kept between calls up to 2 MiB: fresh pages would cost more than a small op.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  // Null where there is no such memory.
  void* reserve(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(64, static_cast<size_t>(size_));
      if (memory_ == nullptr) size_ = 0;
    }
    return memory_;
  }
  void release() {
    if (size_ <= kKept) return;
    std::free(memory_);
    memory_ = nullptr, size_ = 0;
  }

 private:
  static constexpr int64_t kKept = 2 << 20;
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

thread_local Scratch scratch;

// Waking a thread costs as much as some ten thousand elements; fewer are not worth it.
int useful_threads(int threads, int64_t elements) {
  const int64_t most = 1 + elements / 16384;
  return most < threads ? static_cast<int>(most) : threads;
}

std::string mebibytes(int64_t bytes) { return std::to_string((bytes >> 20) + 1) + " MiB"; }

std::shared_ptr<const Plan> plan_for(int64_t side) {
  if (side > kLongestSide) {
    throw std::invalid_argument("expected sides of at most " + std::to_string(kLongestSide) + " px, got " +
                                std::to_string(side));
  }
  try {
    return plan_of(side);
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("there is no memory for the tables of " + std::to_string(side) + " px");
  }
}

template <class Args, class Op>
void planes(const Args& args, int threads, Op op) {
  const Shape& shape = args.shape;
  const int64_t count = shape.b * shape.c;
  if (count == 0) return;
  const Kernels& kernels = *chosen().load(std::memory_order_relaxed);
  // Held until the call ends, whatever becomes of the cache.
  const auto plan_h = plan_for(shape.h), plan_w = plan_for(shape.w);
  const int64_t bytes = kernels.scratch(plan_h.get(), plan_w.get(), planes_of(args));
  // The caller's thread comes first: where it has its scratch, the call gets done, if need be by it alone.
  if (scratch.reserve(bytes) == nullptr) {
    throw OutOfMemory("each thread needs " + mebibytes(bytes) + " for its plane in float32, and there is no such memory");
  }
  parallel_for(count, useful_threads(threads, count * shape.h * shape.w), [&](Items& items) {
    void* memory = scratch.reserve(bytes);
    if (memory == nullptr) return;
    for (int64_t begin, end; items.take(begin, end);) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t b = item / shape.c, c = item % shape.c;
        op(kernels)(args, b, c, plan_h.get(), plan_w.get(), memory, item > begin);
      }
    }
    scratch.release();
  });
}

}  // namespace

#define SOFTDIFF_RUN(name, Args) \
  void run(const Args& args, int threads) { planes(args, threads, [](const Kernels& k) { return k.name; }); }
SOFTDIFF_KERNELS(SOFTDIFF_RUN)
#undef SOFTDIFF_RUN

void run(const NormalArgs& args, int threads) {
  const Kernels& kernels = *chosen().load(std::memory_order_relaxed);
  constexpr int64_t kRun = 16 * kChunk;
  const int64_t runs = (args.count + kRun - 1) / kRun;
  parallel_for(args.b * runs, useful_threads(threads, args.b * args.count), [&](Items& items) {
    alignas(64) float buffer[kChunk + 64];
    for (int64_t first, last; items.take(first, last);) {
      for (int64_t item = first; item < last; ++item) {
        const int64_t begin = item % runs * kRun, end = begin + kRun < args.count ? begin + kRun : args.count;
        kernels.normal(args, item / runs, begin, end, buffer);
      }
    }
  });
}

const char* instruction_set() { return chosen().load()->name; }

bool use_instruction_set(const char* name) {
  const Kernels* kernels = kernels_named(name);
  if (kernels != nullptr) chosen().store(kernels);
  return kernels != nullptr;
}

}  // namespace softdiff
