// SPDX-License-Identifier: Apache-2.0
// Shared memory and the copies into it.
#include <cstring>

#include "engine.h"
#include "include/shim_ptx.h"

namespace softdiff_shim {

// A heap block for each array, of exactly its size, so that ASan's redzones lie between them.
void* Engine::take_shared(Site site, int index, size_t bytes) {
  const size_t i = static_cast<size_t>(index);
  std::vector<Shared>& shared = blocks_[static_cast<size_t>(current_->block)].shared;
  size_t& taken = blocks_[static_cast<size_t>(current_->block)].shared_used;
  if (bytes == SIZE_MAX) fail(site, "a negative count");
  if (i < shared.size()) {
    if (shared[i].bytes != bytes) {
      fail(site, "array " + std::to_string(index) + " of shared memory has " + std::to_string(bytes) +
                     " bytes here and " + std::to_string(shared[i].bytes) + " in another thread");
    }
    return shared[i].memory.get();
  }
  const size_t used = taken + (bytes + 15) / 16 * 16;
  if (used > shared_limit_) {
    fail(site, "the arrays take " + std::to_string(used) +
                   " bytes of shared memory, the launch gave dynamicSmemBytes = " + std::to_string(shared_limit_));
  }
  taken = used;
  shared.push_back({{std::malloc(bytes), &std::free}, bytes});
  return std::memset(shared.back().memory.get(), 0xff, bytes);
}

void Engine::check_shared16(Site site, const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (at % 16 != 0) fail(site, "the address is not a multiple of 16");
  for (const Shared& array : blocks_[static_cast<size_t>(current_->block)].shared) {
    const auto begin = reinterpret_cast<uintptr_t>(array.memory.get());
    if (at >= begin && at + 16 <= begin + array.bytes) return;
  }
  fail(site, "16 bytes from the address are not inside one array of shared memory");
}

void* take_shared(Site site, int index, size_t bytes) { return engine.take_shared(site, index, bytes); }

// The copy happens at the wait. Until then the destination holds NaN: whoever reads it before the wait, or still wants
// what was there, notices.
void cp_async16(Site site, void* shared, const void* global) {
  engine.check_shared16(site, shared);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) engine.fail(site, "the source is not a multiple of 16");
  std::memset(shared, 0xff, 16);
  Thread& me = engine.self();
  me.copies.push_back({shared, global, me.group});
}

void cp_async_commit() { ++engine.self().group; }

void cp_async_wait(int groups_left) {
  Thread& me = engine.self();
  size_t landed = 0;
  while (landed < me.copies.size() && me.copies[landed].group < me.group - groups_left) {
    std::memcpy(me.copies[landed].shared, me.copies[landed].global, 16);
    ++landed;
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(landed));
}

}  // namespace softdiff_shim
