#include "tests/cuda_emulator/static_shared.h"

#include <link.h>

#include <cstring>
#include <utility>

namespace jiboia::emulated {

#if defined(__SANITIZE_ADDRESS__)
StaticSharedMemory::StaticSharedMemory() = default;
StaticSharedMemory::~StaticSharedMemory() = default;
#else
StaticSharedMemory::StaticSharedMemory() {
  auto find = [](dl_phdr_info* info, std::size_t, void* context) {
    auto& self = *static_cast<StaticSharedMemory*>(context);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
      self.variables_ = static_cast<std::byte*>(info->dlpi_tls_data);
      self.bytes_ = info->dlpi_phdr[i].p_memsz;
    }
    return 1;  // the first object is the program; no other holds kernels
  };
  dl_iterate_phdr(find, this);
  if (!variables_) return;
  saved_ = std::make_unique_for_overwrite<std::byte[]>(bytes_);
  std::memcpy(saved_.get(), variables_, bytes_);
  std::memset(variables_, 0xFF, bytes_);
}

StaticSharedMemory::~StaticSharedMemory() {
  if (variables_) std::memcpy(variables_, saved_.get(), bytes_);
}
#endif

}  // namespace jiboia::emulated
