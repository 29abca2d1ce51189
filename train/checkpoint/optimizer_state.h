#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/file.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// Which save a file belongs to.
struct SaveId {
  std::string run_id;
  std::int64_t step = 0;
};

/// "optimizer_00000_of_00001.safetensors"
std::string optimizer_file_name(Rank rank);

/// Writes AdamW's moments of a rank's slice of the store, perhaps an empty one. Tensors are named
/// by parameter and range of its elements, whatever the number of ranks:
/// "exp_avg/backbone.norm_f.weight[0:768]" and "exp_avg_sq/...", f32. The metadata names the save
/// and the rank. Errors: Io; Unsupported for a store that is not f32.
FileDigest write_optimizer_state(const std::filesystem::path& folder, const ParameterStore& store,
                                 Rank rank, const SaveId& save);

/// Fills all moments of the store from the files in `folder` of any number of ranks. Errors: Io;
/// Checkpoint, with a table, when files are missing, belong to another save, or when their tensors
/// do not cover every element exactly once.
void load_optimizer_state(const std::filesystem::path& folder, ParameterStore& store,
                          const SaveId& save);

}  // namespace jiboia
