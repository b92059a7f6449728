#include "mirabelle/kernels/instruction_set.h"

namespace mirabelle {

const char* cpu_instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "baseline";
#endif
}

}  // namespace mirabelle
