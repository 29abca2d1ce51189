#include "train/checkpoint/optimizer_state.h"

#include <algorithm>
#include <map>
#include <optional>
#include <regex>
#include <span>

#include "core/error.h"
#include "core/host_access.h"
#include "data/safetensors.h"
#include "train/checkpoint/manifest.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;

constexpr const char* kFirstMoment = "exp_avg";
constexpr const char* kSecondMoment = "exp_avg_sq";

/// A part of a parameter's moment, under its name in files.
struct Piece {
  std::string name;
  Tensor values;
};

std::map<std::string, std::string> metadata(Rank rank, const SaveId& save) {
  return {{"format", "pt"},
          {"run_id", save.run_id},
          {"step", std::to_string(save.step)},
          {"rank", std::to_string(rank.index)},
          {"ranks", std::to_string(rank.count)}};
}

/// The parts of both moments within a slice.
std::vector<Piece> pieces_within(const ParameterStore& store, const FlatRange& slice) {
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < store.count(); ++i) {
    const FlatRange range = store.range(i);
    const std::int64_t begin = std::clamp(slice.begin - range.begin, std::int64_t{0}, range.size);
    const std::int64_t end =
        std::clamp(slice.begin + slice.size - range.begin, std::int64_t{0}, range.size);
    if (begin == end) continue;
    const auto add = [&](const char* moment, const Tensor& tensor) {
      pieces.push_back({fmt::format("{}/{}[{}:{}]", moment, store.spec(i).name, begin, end),
                        Tensor(Spec(Dtype::kF32, {end - begin}), tensor.as<float>() + begin)});
    };
    add(kFirstMoment, store.exp_avg(i));
    add(kSecondMoment, store.exp_avg_sq(i));
  }
  return pieces;
}

/// The files of all ranks; where there is a manifest, only those that it lists. Errors: Checkpoint
/// when there are not exactly those of one number.
std::vector<SafetensorsFile> open_all_ranks(const fs::path& folder, const SaveId& save) {
  static const std::regex kName(R"(optimizer_\d{5}_of_(\d{5})\.safetensors)");
  std::optional<Manifest> manifest;
  if (fs::exists(folder / Manifest::kFileName)) manifest = read_manifest(folder);
  std::vector<std::string> names;
  std::smatch match;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (manifest && !manifest->files.contains(name)) continue;
    if (std::regex_match(name, match, kName)) names.push_back(name);
  }
  require(!names.empty(), ErrorKind::kCheckpoint,
          "'{}' has no optimizer state, so no run can go on from it; a new one can start with its "
          "weights by init_from",
          folder.string());
  std::ranges::sort(names);
  std::regex_match(names[0], match, kName);
  const int count = std::stoi(match[1]);

  std::vector<SafetensorsFile> files;
  for (int index = 0; index < count; ++index) {
    const std::string name = optimizer_file_name({index, count});
    require(std::ranges::binary_search(names, name), ErrorKind::kCheckpoint,
            "'{}' has {} of the optimizer's files, {} is missing", folder.string(), names.size(),
            name);
    files.emplace_back(folder / name);
    require(files.back().metadata() == metadata({index, count}, save), ErrorKind::kCheckpoint,
            "'{}' does not belong to rank {} of {} of step {} of run {}",
            files.back().path().string(), index, count, save.step, save.run_id);
  }
  require(std::cmp_equal(names.size(), count), ErrorKind::kCheckpoint,
          "'{}' has optimizer files of several numbers of ranks, {} and {} among them",
          folder.string(), names.front(), names.back());
  return files;
}

/// A stored piece of a moment.
struct StoredPiece {
  const SafetensorsFile* file = nullptr;
  const SafetensorsEntry* entry = nullptr;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

/// All pieces by "moment/parameter", in the order of their elements.
std::map<std::string, std::vector<StoredPiece>> index_pieces(
    const std::vector<SafetensorsFile>& files, std::vector<std::string>& problems) {
  static const std::regex kName(R"((.+)\[(\d{1,18}):(\d{1,18})\])");
  std::map<std::string, std::vector<StoredPiece>> pieces;
  for (const SafetensorsFile& file : files) {
    for (const SafetensorsEntry& entry : file.entries()) {
      std::smatch match;
      StoredPiece piece{&file, &entry};
      if (std::regex_match(entry.name, match, kName)) {
        piece.begin = std::stoll(match[2]);
        piece.end = std::stoll(match[3]);
      }
      if (entry.dtype == Dtype::kF32 && piece.end - piece.begin == entry.elements)
        pieces[match[1]].push_back(piece);
      else
        problems.push_back(entry.name + ": is not a piece of a moment in F32");
    }
  }
  for (auto& [name, list] : pieces) std::ranges::sort(list, {}, &StoredPiece::begin);
  return pieces;
}

void read_piece(const StoredPiece& piece, const Tensor& moment, HostAccess& host) {
  visit_float(moment.dtype, [&]<class T>() {
    const Tensor to(Spec(moment.dtype, {piece.entry->elements}), moment.as<T>() + piece.begin);
    host.write<T>(to, [&](std::int64_t first, std::span<T> part) {
      piece.file->read(*piece.entry, first, part);
    });
  });
}

}  // namespace

std::string optimizer_file_name(Rank rank) {
  return fmt::format("optimizer_{:05}_of_{:05}.safetensors", rank.index, rank.count);
}

FileDigest write_optimizer_state(const fs::path& folder, const ParameterStore& store, Rank rank,
                                 const SaveId& save) {
  require(store.dtype() == Dtype::kF32, ErrorKind::kUnsupported,
          "only the optimizer of f32 parameters can be saved, these are {}",
          to_string(store.dtype()));
  const std::vector<Piece> pieces = pieces_within(store, store.slice(rank));
  std::vector<TensorInfo> tensors;
  std::map<std::string, Tensor> values;
  for (const Piece& piece : pieces) {
    tensors.push_back({piece.name, Dtype::kF32, {piece.values.size()}});
    values[piece.name] = piece.values;
  }
  SafetensorsWriter writer(folder / optimizer_file_name(rank), std::move(tensors),
                           metadata(rank, save));
  HostAccess host(store.exec());
  for (const TensorInfo& tensor : writer.order()) {
    host.read<float>(values.at(tensor.name),
                     [&](std::span<const float> part) { writer.write(tensor.name, part); });
  }
  return writer.commit();
}

void load_optimizer_state(const fs::path& folder, ParameterStore& store, const SaveId& save) {
  const std::vector<SafetensorsFile> files = open_all_ranks(folder, save);
  std::vector<std::string> problems;
  auto pieces = index_pieces(files, problems);
  HostAccess host(store.exec());

  const auto load = [&](const std::string& name, const Tensor& moment) {
    std::int64_t next = 0;
    if (const auto found = pieces.extract(name)) {
      for (const StoredPiece& piece : found.mapped()) {
        if (piece.begin != next || piece.end > moment.size()) break;
        read_piece(piece, moment, host);
        next = piece.end;
      }
    }
    if (next != moment.size())
      problems.push_back(
          fmt::format("{}: element {} of {} is not there exactly once", name, next, moment.size()));
  };
  for (std::size_t i = 0; i < store.count(); ++i) {
    load(fmt::format("{}/{}", kFirstMoment, store.spec(i).name), store.exp_avg(i));
    load(fmt::format("{}/{}", kSecondMoment, store.spec(i).name), store.exp_avg_sq(i));
  }
  for (const auto& [name, list] : pieces)
    problems.push_back(name + ": is not of a parameter of the model");
  require(problems.empty(), ErrorKind::kCheckpoint,
          "'{}': the optimizer state is not that of the model:\n  {}", folder.string(),
          fmt::join(problems, "\n  "));
}

}  // namespace jiboia
