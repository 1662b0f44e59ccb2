// Which instruction set's kernels run: the best that the CPU has, or the one that MTLFAST_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../plan.h"

namespace mtlfast {
namespace {

std::vector<const KernelTable*> supported() {
  std::vector<const KernelTable*> tables;
#if defined(MTLFAST_HAVE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    tables.push_back(&avx512_kernels());
  if (avx2) tables.push_back(&avx2_kernels());
#endif
  tables.push_back(&baseline_kernels());
  return tables;
}

const KernelTable* find(const char* name) {
  const auto tables = supported();
  if (std::strcmp(name, "auto") == 0) return tables.front();
  std::string names = "auto";
  for (const KernelTable* table : tables) {
    if (std::strcmp(name, table->isa) == 0) return table;
    names += std::string(", ") + table->isa;
  }
  throw std::invalid_argument("MTLFAST_ISA: expected one that this CPU has (" + names +
                              "), found '" + name + "'");
}

const KernelTable*& current() {
  static const KernelTable* table = [] {
    const char* name = std::getenv("MTLFAST_ISA");
    return find(name == nullptr || *name == '\0' ? "auto" : name);
  }();
  return table;
}

}  // namespace

const KernelTable& kernels() { return *current(); }

void force_isa(const char* name) { current() = find(name); }

std::vector<const char*> supported_isas() {
  std::vector<const char*> names;
  for (const KernelTable* table : supported()) names.push_back(table->isa);
  return names;
}

}  // namespace mtlfast
