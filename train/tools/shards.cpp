#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "core/error.h"
#include "data/shard_check.h"
#include "data/shard_manifest.h"
#include "train/tools/child_process.h"
#include "train/tools/program.h"

namespace jiboia {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kDescription =
    "Looks into a folder of token shards, the training data that scripts/prepare_data.py writes.\n"
    "The format is described in data/FORMAT.md.";
constexpr const char* kInspectHelp =
    "Print what a folder holds, as its manifest says: layout, counts, vocabulary, tokenizer and "
    "shards. Reads the manifest only.";
constexpr const char* kVerifyHelp =
    "Check a folder against its manifest: the size and hash of every file, the structure of every "
    "shard, every token and every document start. Prints a line for each file and goes on after a "
    "bad one. HDF5 runs in a process of its own, so that a crash inside it is reported like any "
    "other fault.";
constexpr const char* kFooter =
    "Exit codes: 0 all is well, 2 usage, 3 the data is damaged or malformed, 7 disk.";

void set_if(Json& json, const char* key, const std::optional<std::int64_t>& value) {
  if (value) json[key] = *value;
}

Json describe(const ShardManifest& manifest) {
  Json json;
  json["folder"] = manifest.folder.string();
  json["layout"] = manifest.layout == ShardLayout::kRows ? "rows" : "stream";
  if (manifest.layout == ShardLayout::kRows) {
    json["row_length"] = manifest.row_length;
    json["rows"] = manifest.tokens / manifest.row_length;
  }
  json["tokens"] = manifest.tokens;
  set_if(json, "source_bytes", manifest.source_bytes);
  if (const auto ratio = manifest.bytes_per_token()) json["bytes_per_token"] = *ratio;
  json["vocab_size"] = manifest.vocab_size;
  set_if(json, "bos_token_id", manifest.bos_token_id);
  set_if(json, "eos_token_id", manifest.eos_token_id);
  set_if(json, "pad_token_id", manifest.pad_token_id);
  if (!manifest.tokenizer.empty()) json["tokenizer"] = manifest.tokenizer;
  json["fingerprint"] = manifest.fingerprint();
  json["tokenizer_files"] = Json::array();
  for (const auto& file : manifest.tokenizer_files)
    json["tokenizer_files"].push_back(
        {{"name", file.name}, {"bytes", file.bytes}, {"xxh3", file.xxh3}});
  json["files"] = Json::array();
  for (const auto& shard : manifest.shards) {
    Json entry = {{"name", shard.name},
                  {"bytes", shard.bytes},
                  {"xxh3", shard.xxh3},
                  {"tokens", shard.tokens}};
    set_if(entry, "documents", shard.documents);
    set_if(entry, "source_bytes", shard.source_bytes);
    json["files"].push_back(std::move(entry));
  }
  return json;
}

/// The same facts for people: a line each, then a table of the files.
void print_table(const Json& facts) {
  for (const auto& [key, value] : facts.items())
    if (!value.is_array())
      fmt::print("{:<16} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
  fmt::print("\n{:<24} {:>14} {:>14} {:>12}  {}\n", "file", "bytes", "tokens", "documents", "xxh3");
  const auto count = [](const Json& file, const char* key) {
    return file.contains(key) ? file[key].dump() : "-";
  };
  for (const char* list : {"files", "tokenizer_files"})
    for (const auto& file : facts[list])
      fmt::print("{:<24} {:>14} {:>14} {:>12}  {}\n", file["name"].get<std::string>(),
                 file["bytes"].dump(), count(file, "tokens"), count(file, "documents"),
                 file["xxh3"].get<std::string>());
}

/// How many files are not well.
struct Findings {
  std::size_t bad = 0;
  std::size_t unchecked = 0;  ///< the system failed, the file may be well
};

/// Prints one file's line and counts it. `check` throws, or returns what is wrong.
void report(const std::string& name, const std::string& counts,
            const std::function<std::string()>& check, Findings& findings) {
  std::string text;
  try {
    const std::string problem = check();
    text = problem.empty() ? "ok" + counts : "BAD: " + problem;
    findings.bad += problem.empty() ? 0 : 1;
  } catch (const Error& error) {
    const bool unchecked = error.kind() == ErrorKind::kIo;
    text = fmt::format("{}: {}", unchecked ? "NOT CHECKED" : "BAD", error.what());
    ++(unchecked ? findings.unchecked : findings.bad);
  }
  fmt::print("{}: {}\n", name, text);
  std::fflush(stdout);
}

int verify(const ShardManifest& manifest) {
  Findings findings;
  for (std::size_t i = 0; i < manifest.shards.size(); ++i) {
    const ManifestShard& shard = manifest.shards[i];
    const auto check = [&] {
      verify_file(manifest, shard);
      return run_in_child([&] { check_shard(manifest, i); });
    };
    report(shard.name, fmt::format(", {} tokens", shard.tokens), check, findings);
  }
  for (const auto& file : manifest.tokenizer_files) {
    const auto check = [&] {
      verify_file(manifest, file);
      return std::string();
    };
    report(file.name, "", check, findings);
  }
  const std::size_t files = manifest.shards.size() + manifest.tokenizer_files.size();
  require(findings.bad == 0, ErrorKind::kData, "{}: {} of {} files are bad",
          manifest.folder.string(), findings.bad, files);
  require(findings.unchecked == 0, ErrorKind::kIo, "{}: {} of {} files could not be checked",
          manifest.folder.string(), findings.unchecked, files);
  fmt::print("{}: {} files, {} tokens, all well\n", manifest.folder.string(), files,
             manifest.tokens);
  return 0;
}

int run(int argc, char** argv) {
  CLI::App app(kDescription);
  app.footer(kFooter);
  app.require_subcommand(1);
  std::string folder;
  bool json = false;
  CLI::App* inspect = app.add_subcommand("inspect", kInspectHelp);
  inspect->add_option("DIR", folder, "folder of token shards")->required();
  inspect->add_flag("--json", json, "print one JSON object");
  CLI::App* verify_command = app.add_subcommand("verify", kVerifyHelp);
  verify_command->add_option("DIR", folder, "folder of token shards")->required();
  return run_program("shards", app, argc, argv, [&] {
    const ShardManifest manifest = ShardManifest::load(folder);
    if (verify_command->parsed()) return verify(manifest);
    const Json facts = describe(manifest);
    if (json)
      fmt::print("{}\n", facts.dump(2, ' ', false, Json::error_handler_t::replace));
    else
      print_table(facts);
    return 0;
  });
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) { return jiboia::run(argc, argv); }
