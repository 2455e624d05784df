// SPDX-License-Identifier: Apache-2.0
#include "kernel_name.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

namespace softdiff_shim {
namespace {

// dladdr knows exported functions alone; the file's symbol table knows all.
std::string symbol(const void* function) {
  Dl_info info;
  if (dladdr(function, &info) == 0) return "";
  std::ifstream stream(info.dli_fname, std::ios::binary);
  const std::vector<char> file((std::istreambuf_iterator<char>(stream)), {});
  if (file.size() < sizeof(ElfW(Ehdr))) return "";
  const uintptr_t offset = reinterpret_cast<uintptr_t>(function) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(file.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(file.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(file.data() + sections[i].sh_offset);
    const char* names = file.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t j = 0; j < sections[i].sh_size / sizeof(ElfW(Sym)); ++j) {
      if (symbols[j].st_value == offset && (symbols[j].st_info & 0xf) == STT_FUNC) return names + symbols[j].st_name;
    }
  }
  return "";
}

}  // namespace

std::string kernel_name(const void* function) {
  const std::string mangled = symbol(function);
  if (mangled.empty()) return "(unnamed)";
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  // Without the parameters, which are the last pair of parentheses.
  int depth = 0;
  for (size_t i = name.size(); i-- > 0 && name.back() == ')';) {
    if (name[i] == ')') ++depth;
    if (name[i] == '(' && --depth == 0) return name.substr(0, i);
  }
  return name;
}

}  // namespace softdiff_shim
