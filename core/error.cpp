#include "core/error.h"

namespace jiboia {

const char* to_string(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument: return "invalid argument";
    case ErrorKind::kUnsupported: return "unsupported";
    case ErrorKind::kConfig: return "config";
    case ErrorKind::kData: return "data";
    case ErrorKind::kCheckpoint: return "checkpoint";
    case ErrorKind::kNumerics: return "numerics";
    case ErrorKind::kIo: return "io";
    case ErrorKind::kOutOfMemory: return "out of memory";
    case ErrorKind::kCuda: return "cuda";
    case ErrorKind::kInternal: return "internal";
  }
  return "unknown";
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
    case ErrorKind::kUnsupported:
    case ErrorKind::kConfig: return 2;
    case ErrorKind::kData: return 3;
    case ErrorKind::kCheckpoint: return 4;
    case ErrorKind::kNumerics: return 5;
    case ErrorKind::kCuda: return 6;
    case ErrorKind::kIo: return 7;
    case ErrorKind::kOutOfMemory:
    case ErrorKind::kInternal: return 1;
  }
  return 1;
}

}  // namespace jiboia
