// SPDX-License-Identifier: Apache-2.0
// The warp's collectives.
#include "engine.h"

namespace softdiff_shim {
namespace {

struct Word {
  uint32_t in, out;
  int source;
};

void exchange(void* const* records) {
  for (int lane = 0; lane < 32; ++lane) {
    auto* mine = static_cast<Word*>(records[lane]);
    mine->out = static_cast<const Word*>(records[mine->source])->in;
  }
}

void any_of(void* const* records) {
  uint32_t any = 0;
  for (int lane = 0; lane < 32; ++lane) any |= static_cast<const Word*>(records[lane])->in;
  for (int lane = 0; lane < 32; ++lane) static_cast<Word*>(records[lane])->out = any;
}

}  // namespace

uint32_t shuffle_xor(Site site, unsigned mask, uint32_t value, int lanes) {
  if (lanes < 0 || lanes > 31) engine.fail(site, "the lanes' distance is not within 0 to 31");
  Word word{value, 0, engine.self().lane ^ lanes};
  engine.warp_collective(site, mask, &word, exchange);
  return word.out;
}

bool any(Site site, unsigned mask, bool vote) {
  Word word{vote, 0, 0};
  engine.warp_collective(site, mask, &word, any_of);
  return word.out != 0;
}

void sync_threads(Site site) { engine.barrier(site); }

}  // namespace softdiff_shim
