#include "core/trace.h"

#include <nvtx3/nvToolsExt.h>

namespace jiboia {

TraceRange::TraceRange(CudaExec&, const char* name) : end_([] { nvtxRangePop(); }) {
  nvtxRangePushA(name);
}

}  // namespace jiboia
