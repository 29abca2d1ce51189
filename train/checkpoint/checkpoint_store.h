#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "train/checkpoint/model_folder.h"
#include "train/checkpoint/run_folder.h"
#include "train/checkpoint/trainer_state.h"
#include "train/model/model_config.h"
#include "train/optim/parameter_store.h"

namespace jiboia {

/// The checkpoints of a run: folders checkpoints/step_00000100, each a complete Hugging Face model
/// plus trainer_state.json, optimizer_*.safetensors and MANIFEST.json. A folder of that name is
/// there either whole or not at all, whenever the process or the machine dies:
///
///  1. everything is written and synced in step_00000100.tmp-<run id>, the manifest last;
///  2. that folder is renamed, and its parent synced: now the checkpoint is committed;
///  3. the symbolic link `latest`, for people, is pointed at it; nothing here reads it;
///  4. once the run has gone on from it, the new folder is read again and compared with its
///  manifest;
///     only then do older ones go, each renamed to a .tmp- name before its files are removed.
///
/// A folder is only ever removed when it holds our marker file. What else has the name of a
/// checkpoint to come is renamed, with a warning.
class CheckpointStore {
 public:
  /// Removes what dead runs left unfinished. `folder` must outlive the store. Errors: Io.
  CheckpointStore(const RunFolder& folder, const CheckpointConfig& config);

  /// Bytes of the tensors in a checkpoint of a model of so many parameters.
  static std::int64_t bytes(std::int64_t parameter_count, CheckpointContents contents) {
    return parameter_count * (contents == CheckpointContents::kAll ? 3 : 1) * 4;
  }

  /// Steps with a committed checkpoint, in rising order, whether undamaged or not.
  std::vector<std::int64_t> steps() const;
  /// checkpoints/step_00000100
  std::filesystem::path path_of(std::int64_t step) const;

  struct Resumed {
    std::filesystem::path folder;
    TrainerState state;
    bool has_moments = true;  ///< false of a checkpoint of weights alone, whose moments stay zero
  };
  /// Fills the store's values and moments from the newest checkpoint that is undamaged, after a
  /// warning for each newer one that is not. Nothing when there is no committed checkpoint.
  /// Errors: Checkpoint when all are damaged, listing them with the reasons; when the newest was
  /// written by a newer program; when it is of another model or other data (see check_inputs()).
  /// Config when this store would put weights alone above a checkpoint that a run can go on from.
  std::optional<Resumed> resume(const RunInputs& now, DataChange data_change,
                                ParameterStore& parameters);

  /// Commits a checkpoint; does nothing when `state.step` is already saved by this process or is
  /// where it resumed. Errors: Io, saying what the checkpoint takes and what is free; older
  /// checkpoints are then as they were.
  void save(const TrainerState& state, const ModelConfig& config, const ParameterStore& parameters,
            const std::vector<CompanionFile>& companions);

  /// How many checkpoints there will be at a time beyond those that are there now, at most, when so
  /// many are saved.
  std::int64_t more_at_once(std::int64_t saves) const;

  /// Removes checkpoints beyond `keep`, after the newest has been read back. To be called when the
  /// run has gone on from the newest without trouble: weights can be finite and still be lost, and
  /// then an older checkpoint is all there is. Returns whether there were any, which takes the time
  /// of reading a checkpoint. Errors: Io when the newest reads back differently.
  bool remove_superseded();
  /// Whether remove_superseded() may have something to do.
  bool has_superseded() const { return has_superseded_; }

 private:
  void write(const std::filesystem::path& folder, const TrainerState& state,
             const ModelConfig& config, const ParameterStore& parameters,
             const std::vector<CompanionFile>& companions) const;
  void commit(const std::filesystem::path& temporary, std::int64_t step);
  void point_latest_at(const std::filesystem::path& folder) const;
  bool remove_older_than(std::int64_t step);
  /// Renames a committed folder so that it does not count any more; returns its new path.
  std::filesystem::path retire(const std::filesystem::path& folder) const;

  std::filesystem::path folder_;
  CheckpointConfig config_;
  /// Names the run in all its checkpoints; resume() takes it over from them.
  std::string run_id_;
  std::int64_t newest_good_step_ = -1;
  bool has_superseded_ = false;  ///< a save has not been followed by remove_superseded() yet
  std::set<std::int64_t> damaged_steps_;  ///< rejected by resume()
};

/// The model folder that a user means by `path`: the newest undamaged checkpoint when it is a run's
/// output_dir or its checkpoints folder; else `path` itself, verified if it is a checkpoint. The
/// folder is what links lead to now, such as a run's `latest`, which may be moved any time; what
/// reads it should do so by read_while_there(). Errors: Checkpoint, Io.
std::filesystem::path find_model(const std::filesystem::path& path);

}  // namespace jiboia
