#pragma once

namespace mirabelle {

/// What the CPU kernels that the loader chose for this machine were compiled for: "AVX-512", "AVX2"
/// or "baseline". (oneDNN chooses for itself.)
const char* cpu_instruction_set();

}  // namespace mirabelle
