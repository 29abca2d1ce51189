#include "train/checkpoint/checkpoint_store.h"

#include <algorithm>
#include <fstream>
#include <random>
#include <regex>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "core/log.h"
#include "data/file.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/model_weights.h"
#include "train/checkpoint/optimizer_state.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

/// An empty file that marks a folder as one that this program made and may remove. It is the first
/// file in and the last one out.
constexpr const char* kMarker = ".jiboia-checkpoint";

std::string name_of(std::int64_t step) { return fmt::format("step_{:08}", step); }

/// The step of a committed checkpoint's name, exactly as name_of() spells it.
std::optional<std::int64_t> step_of(const std::string& name) {
  static const std::regex kName(R"(step_(\d{8,18}))");
  std::smatch match;
  if (!std::regex_match(name, match, kName)) return std::nullopt;
  const std::int64_t step = std::stoll(match[1]);
  return name == name_of(step) ? std::optional(step) : std::nullopt;
}

std::string new_run_id() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

/// Steps of the committed checkpoints in `folder`, in rising order.
std::vector<std::int64_t> committed_steps(const fs::path& folder) {
  std::vector<std::int64_t> steps;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const auto step = step_of(entry.path().filename());
    if (step && entry.is_directory()) steps.push_back(*step);
  }
  std::ranges::sort(steps);
  return steps;
}

void mark(const fs::path& folder) {
  const fs::path marker = folder / kMarker;
  if (!std::ofstream(marker, std::ios::app))
    fail(ErrorKind::kIo, "cannot create '{}'", marker.string());
  fsync_directory(folder);
}

/// Removes a folder and what is in it, the marker last, so that what is left after a crash is still
/// recognised.
void remove_marked(const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename() != kMarker) fs::remove_all(entry.path());
  }
  fs::remove(folder / kMarker);
  fs::remove(folder);
}

/// remove_marked() of a folder that is of no use, whose trouble is no reason to stop.
void discard(const fs::path& folder) {
  try {
    remove_marked(folder);
  } catch (const fs::filesystem_error& error) {
    log::warning("cannot remove '{}': {}", folder.string(), error.what());
  }
}

/// Whether remove_marked() may have a folder. One whose maker died before marking it is empty.
bool is_ours(const fs::path& folder) {
  return fs::is_directory(fs::symlink_status(folder)) &&
         (fs::exists(folder / kMarker) || fs::is_empty(folder));
}

/// Renames what has a checkpoint's name and is none of ours to one that counts for nothing.
void set_aside(const fs::path& path) {
  fs::path aside;
  for (int i = 1; aside.empty() || fs::exists(fs::symlink_status(aside)); ++i) {
    aside = path;
    aside += fmt::format(".not-a-checkpoint-{}", i);
  }
  rename_path(path, aside);
  log::warning("'{}' is no checkpoint of this program and in the way of one; it is now '{}'",
               path.string(), aside.filename().string());
}

void remove_unfinished(const fs::path& folder) {
  static const std::regex kName(R"(step_\d{8,18}\.tmp-.*)");
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (!std::regex_match(entry.path().filename().string(), kName)) continue;
    if (!is_ours(entry.path())) {
      log::warning(
          "'{}' is called like an unfinished checkpoint, but is not marked as one; it stays",
          entry.path().string());
      continue;
    }
    log::info("removing the unfinished checkpoint '{}'", entry.path().string());
    discard(entry.path());
  }
}

/// A committed checkpoint with its manifest. Errors: Io, Checkpoint; Unsupported when a newer
/// program wrote it.
Manifest verify_checkpoint(const fs::path& folder, std::int64_t step) {
  Manifest manifest = verify_folder(folder);
  const std::int64_t state_step = read_trainer_state(folder).step;
  require(manifest.step == step && state_step == step, ErrorKind::kCheckpoint,
          "'{}' holds step {} by {} and step {} by {}", folder.string(), manifest.step,
          Manifest::kFileName, state_step, TrainerState::kFileName);
  return manifest;
}

struct Newest {
  std::optional<std::int64_t> step;  ///< absent when there is no committed checkpoint
  Manifest manifest;
  std::set<std::int64_t> damaged_steps;  ///< newer ones
};

/// How often a folder is looked through in which a run in progress adds and removes entries: one
/// look may find a checkpoint that is gone when it is read, or miss the one that replaced it.
constexpr int kLooks = 10;

/// The newest undamaged checkpoint in `folder`. Trouble with reading is no damage: it ends the
/// search, so that no older checkpoint is gone on from by mistake. Errors: Io; Checkpoint when all
/// are damaged or went away while they were read, or when the newest that is not was written by a
/// newer program.
Newest find_newest(const fs::path& folder) {
  Newest newest;
  std::vector<std::string> reasons;
  const auto reject = [&](std::int64_t step, const Error& error) {
    log::warning("checkpoint {} is damaged and is not used: {}", name_of(step), error.what());
    newest.damaged_steps.insert(step);
    reasons.push_back(fmt::format("{}: {}", name_of(step), error.what()));
  };
  std::optional<std::int64_t> removed;
  for (int look = 0; look < kLooks; ++look) {
    const std::vector<std::int64_t> steps = committed_steps(folder);
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      if (newest.damaged_steps.contains(*step)) continue;
      try {
        newest.manifest = verify_checkpoint(folder / name_of(*step), *step);
        newest.step = *step;
        return newest;
      } catch (const std::runtime_error& error) {  // Error, or one of std::filesystem
        if (!fs::exists(folder / name_of(*step))) {
          removed = *step;
          continue;
        }
        const auto* known = dynamic_cast<const Error*>(&error);
        if (known && known->kind() == ErrorKind::kUnsupported)
          fail(ErrorKind::kCheckpoint, "{}", error.what());
        if (!known || known->kind() != ErrorKind::kCheckpoint) throw;
        reject(*step, *known);
      }
    }
  }
  if (removed) require_still_there(folder / name_of(*removed));
  require(reasons.empty(), ErrorKind::kCheckpoint,
          "all checkpoints in '{}' are damaged; to start from the beginning, move them away:\n  {}",
          folder.string(), fmt::join(reasons, "\n  "));
  return newest;
}

/// The folder that `path` leads to, through links that may be moved meanwhile. Errors: Checkpoint
/// when there is none, Io.
fs::path resolve(const fs::path& path) {
  std::error_code error;
  for (int look = 0; look < kLooks; ++look) {
    fs::path folder = fs::canonical(path, error);
    if (!error) return folder;
  }
  const bool is_absent = path.empty() || error == std::errc::no_such_file_or_directory ||
                         error == std::errc::not_a_directory;
  fail(is_absent ? ErrorKind::kCheckpoint : ErrorKind::kIo, "'{}': {}", path.string(),
       is_absent ? "no such folder" : error.message());
}

/// find_model() of what resolve() gave.
fs::path choose_model(const fs::path& path) {
  const bool is_output_dir =
      fs::is_directory(path / "checkpoints") && !fs::exists(path / "config.json");
  const fs::path folder = is_output_dir ? path / "checkpoints" : path;
  if (is_output_dir || (fs::is_directory(folder) && !committed_steps(folder).empty())) {
    const auto step = find_newest(folder).step;
    require(step.has_value(), ErrorKind::kCheckpoint, "'{}' has no checkpoint yet",
            folder.string());
    return folder / name_of(*step);
  }
  if (fs::exists(folder / Manifest::kFileName)) verify_folder(folder);
  return folder;
}

}  // namespace

CheckpointStore::CheckpointStore(const RunFolder& folder, const CheckpointConfig& config)
    : folder_(folder.checkpoints()), config_(config), run_id_(new_run_id()) {
  remove_unfinished(folder_);
}

std::vector<std::int64_t> CheckpointStore::steps() const { return committed_steps(folder_); }

fs::path CheckpointStore::path_of(std::int64_t step) const { return folder_ / name_of(step); }

std::optional<CheckpointStore::Resumed> CheckpointStore::resume(const RunInputs& now,
                                                                DataChange data_change,
                                                                ParameterStore& parameters) {
  Newest newest = find_newest(folder_);
  if (!newest.step) return std::nullopt;
  Resumed resumed{path_of(*newest.step), read_trainer_state(path_of(*newest.step))};
  check_inputs(resumed.state.inputs, now, data_change);
  resumed.has_moments = std::ranges::any_of(
      newest.manifest.files, [](const auto& file) { return file.first.starts_with("optimizer_"); });
  require(!resumed.has_moments || config_.contents == CheckpointContents::kAll, ErrorKind::kConfig,
          "checkpoint.contents is weights, but '{}' can be gone on from, and weights alone would "
          "take its place; choose another output_dir",
          resumed.folder.string());
  load_model_weights(resumed.folder, parameters);
  if (resumed.has_moments) {
    load_optimizer_state(resumed.folder, parameters, {newest.manifest.run_id, *newest.step});
  }
  run_id_ = newest.manifest.run_id;
  newest_good_step_ = *newest.step;
  damaged_steps_ = std::move(newest.damaged_steps);
  return resumed;
}

void CheckpointStore::save(const TrainerState& state, const ModelConfig& config,
                           const ParameterStore& parameters,
                           const std::vector<CompanionFile>& companions) {
  if (state.step == newest_good_step_) return;
  fs::path temporary = path_of(state.step);
  temporary += ".tmp-" + run_id_;
  try {
    if (is_ours(temporary)) remove_marked(temporary);  // of a save that failed
    require(fs::create_directory(temporary), ErrorKind::kIo, "'{}' is in the way",
            temporary.string());
    mark(temporary);
    write(temporary, state, config, parameters, companions);
    commit(temporary, state.step);
  } catch (const std::runtime_error& error) {  // Error, or one of std::filesystem
    std::error_code no_space_known;
    const std::uintmax_t free_bytes = fs::space(folder_, no_space_known).available;
    try {
      if (is_ours(temporary)) remove_marked(temporary);
    } catch (const fs::filesystem_error&) {  // the next start tries again
    }
    const auto* known = dynamic_cast<const Error*>(&error);
    fail(known ? known->kind() : ErrorKind::kIo,
         "the checkpoint of step {} could not be saved; it takes {} bytes{}; earlier ones are as "
         "they were: {}",
         state.step, bytes(parameters.parameter_count(), config_.contents),
         no_space_known ? "" : fmt::format(" and {} are free", free_bytes), error.what());
  }
  point_latest_at(path_of(state.step));
  has_superseded_ = true;
}

std::int64_t CheckpointStore::more_at_once(std::int64_t saves) const {
  if (config_.keep == 0) return saves;
  // The new one is there before the oldest goes.
  return std::min(saves, std::max(config_.keep + 1 - std::ssize(steps()), std::int64_t{1}));
}

bool CheckpointStore::remove_superseded() {
  if (!std::exchange(has_superseded_, false)) return false;
  try {
    return remove_older_than(newest_good_step_);
  } catch (const fs::filesystem_error& error) {
    log::warning("cannot remove old checkpoints: {}", error.what());
    return true;
  }
}

void CheckpointStore::write(const fs::path& folder, const TrainerState& state,
                            const ModelConfig& config, const ParameterStore& parameters,
                            const std::vector<CompanionFile>& companions) const {
  std::vector<WrittenFile> files = write_model_weights(folder, parameters);
  std::ranges::move(write_model_description(folder, config, Dtype::kF32, companions),
                    std::back_inserter(files));
  files.push_back({TrainerState::kFileName,
                   write_file_atomically(folder / TrainerState::kFileName, to_text(state))});
  const Rank rank;
  if (config_.contents == CheckpointContents::kAll) {
    files.push_back({optimizer_file_name(rank),
                     write_optimizer_state(folder, parameters, rank, {run_id_, state.step})});
  }

  Manifest manifest{.run_id = run_id_, .step = state.step};
  for (const WrittenFile& file : files) manifest.files[file.name] = file.digest;
  write_file_atomically(folder / Manifest::kFileName, to_text(manifest));
}

void CheckpointStore::commit(const fs::path& temporary, std::int64_t step) {
  const fs::path folder = path_of(step);
  // Only a damaged checkpoint can have the name of one that is yet to come, or what is none at all.
  std::optional<fs::path> retired;
  if (const fs::file_status there = fs::symlink_status(folder); fs::exists(there)) {
    if (fs::is_directory(there) && fs::exists(folder / kMarker))
      retired = retire(folder);
    else
      set_aside(folder);
  }
  rename_path(temporary, folder);
  fsync_directory(folder_);
  newest_good_step_ = step;
  damaged_steps_.erase(step);
  if (retired) discard(*retired);
}

void CheckpointStore::point_latest_at(const fs::path& folder) const {
  const fs::path temporary = folder_ / "latest.tmp";
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_symlink(folder.filename(), temporary, error);
  if (!error) fs::rename(temporary, folder_ / "latest", error);
  if (error)
    log::warning("cannot point '{}' at the new checkpoint: {}", (folder_ / "latest").string(),
                 error.message());
}

bool CheckpointStore::remove_older_than(std::int64_t step) {
  if (config_.keep == 0) return false;
  std::vector<std::int64_t> excess;
  std::int64_t kept = 1;  // the new one
  const std::vector<std::int64_t> all = steps();
  for (auto older = all.rbegin(); older != all.rend(); ++older) {
    if (*older >= step) continue;
    if (kept < config_.keep && !damaged_steps_.contains(*older))
      ++kept;
    else
      excess.push_back(*older);
  }
  if (excess.empty()) return false;
  try {
    verify_checkpoint(path_of(step), step);
  } catch (const std::runtime_error& error) {  // Error, or one of std::filesystem
    newest_good_step_ = -1;
    fail(ErrorKind::kIo,
         "what was just saved reads back differently, so older checkpoints stay: {}", error.what());
  }
  for (const std::int64_t older : excess) {
    try {
      remove_marked(retire(path_of(older)));
      damaged_steps_.erase(older);
    } catch (const std::runtime_error& error) {  // the new one is safe: no reason to stop
      log::warning("cannot remove the old checkpoint {}: {}", name_of(older), error.what());
    }
  }
  return true;
}

fs::path CheckpointStore::retire(const fs::path& folder) const {
  require(fs::is_directory(fs::symlink_status(folder)) && fs::exists(folder / kMarker),
          ErrorKind::kIo, "'{}' is no checkpoint of this program; move it away", folder.string());
  fs::path retired = folder;
  retired += fmt::format(".tmp-{}-retired", run_id_);
  rename_path(folder, retired);
  return retired;
}

fs::path find_model(const fs::path& path) {
  const fs::path folder = resolve(path);
  return read_while_there(folder, [&] { return choose_model(folder); });
}

}  // namespace jiboia
