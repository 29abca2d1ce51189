#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <thread>

#include "core/error.h"
#include "tests/support/temporary_folder.h"
#include "tests/train/tiny_store.h"
#include "train/checkpoint/checkpoint_store.h"
#include "train/checkpoint/manifest.h"
#include "train/checkpoint/model_weights.h"
#include "train/checkpoint/optimizer_state.h"

namespace jiboia {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

RunInputs tiny_inputs() {
  return {{{"model.vocab_size", "29"}, {"optim.lr", "0.001"}, {"seed", "1"}}, "fingerprint"};
}

TrainerState state_at(std::int64_t step) {
  return {.step = step, .tokens = step * 1000, .next_row = step * 8, .inputs = tiny_inputs()};
}

void overwrite(const fs::path& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << contents;
}

std::string contents_of(const fs::path& path) { return read_text_file(path, 1 << 20); }

/// Makes the manifest agree with what lies in the folder, as a careless person might.
void renew_manifest(const fs::path& folder) {
  Manifest manifest = read_manifest(folder);
  manifest.files.clear();
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name != Manifest::kFileName && name[0] != '.')
      manifest.files[name] = digest_file(entry.path());
  }
  overwrite(folder / Manifest::kFileName, to_text(manifest));
}

/// Flips one bit of a checkpoint's file for the time of a verification.
void expect_flip_is_seen(const fs::path& path, std::size_t bit) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto place = static_cast<std::streamoff>(bit / 8 % fs::file_size(path));
  const auto flip = [&] {
    const int byte = file.seekg(place).get();
    file.seekp(place).put(static_cast<char>(byte ^ 1 << bit % 8)).flush();
  };
  flip();
  EXPECT_THROW(verify_folder(path.parent_path()), Error) << path << " at byte " << place;
  flip();
}

class CheckpointTest : public testing::Test {
 protected:
  /// Saves the given steps in one run; the weights of a step are tiny_store(step).
  void save(const std::vector<std::int64_t>& steps, std::int64_t keep = 0) {
    const RunFolder run(output_);
    CheckpointStore store(run, {.keep = keep});
    for (const std::int64_t step : steps) save_one(store, step);
  }
  static void save_one(CheckpointStore& store, std::int64_t step) {
    store.save(state_at(step), tiny_store_config(), tiny_store(static_cast<int>(step)),
               {{"tokenizer.json", "{}"}});
    store.remove_superseded();
  }
  /// The step that a new run would go on from, with the right weights; -1 for none.
  std::int64_t resumed_step() {
    ParameterStore parameters = tiny_store(1000);
    std::optional<CheckpointStore::Resumed> resumed;
    testing::internal::CaptureStderr();
    try {
      const RunFolder run(output_);
      CheckpointStore store(run, {.keep = 0});
      resumed = store.resume(tiny_inputs(), DataChange::kRefuse, parameters);
    } catch (...) {
      log_ = testing::internal::GetCapturedStderr();
      throw;
    }
    log_ = testing::internal::GetCapturedStderr();
    if (!resumed) return -1;
    const std::int64_t step = resumed->state.step;
    EXPECT_EQ(resumed->state, state_at(step));
    EXPECT_TRUE(equal_bits(parameters, tiny_store(static_cast<int>(step))));
    return step;
  }
  std::string resume_error() {
    try {
      resumed_step();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no error was thrown";
    return "";
  }
  fs::path folder_of(std::int64_t step) const {
    return output_ / "checkpoints" / fmt::format("step_{:08}", step);
  }
  std::vector<std::string> names_in_checkpoints() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(output_ / "checkpoints"))
      names.push_back(entry.path().filename());
    std::ranges::sort(names);
    return names;
  }

  TemporaryFolder root_;
  const fs::path output_ = root_ / "runs/a";
  std::string log_;  ///< of the last resumed_step()
};

TEST_F(CheckpointTest, NothingCommittedIsNothing) {
  EXPECT_EQ(resumed_step(), -1);
  save({3});
  fs::rename(folder_of(3), folder_of(3).string() + ".tmp-0123");  // died before the rename
  EXPECT_EQ(resumed_step(), -1);
  EXPECT_THAT(log_, HasSubstr("removing the unfinished checkpoint"));
  EXPECT_EQ(names_in_checkpoints(), std::vector<std::string>{"latest"});
}

TEST_F(CheckpointTest, ResumesFromTheNewest) {
  save({1, 2, 10});
  EXPECT_EQ(resumed_step(), 10);
  EXPECT_EQ(log_, "");
  EXPECT_EQ(fs::read_symlink(output_ / "checkpoints/latest"), "step_00000010");
}

TEST_F(CheckpointTest, TheRunsIdGoesOn) {
  const RunFolder run(output_);
  CheckpointStore first(run, {.keep = 0}), second(run, {.keep = 0}), third(run, {.keep = 0});
  save_one(first, 1);
  ParameterStore parameters = tiny_store(0);
  ASSERT_TRUE(second.resume(tiny_inputs(), DataChange::kRefuse, parameters));
  save_one(second, 2);
  save_one(third, 3);  // another run, for it has resumed nothing
  const auto run_id = [&](std::int64_t step) { return read_manifest(folder_of(step)).run_id; };
  EXPECT_FALSE(run_id(1).empty());
  EXPECT_EQ(run_id(2), run_id(1));
  EXPECT_NE(run_id(3), run_id(1));
}

TEST_F(CheckpointTest, AFolderIsAHuggingFaceModelAndATrainersState) {
  save({1});
  std::vector<std::string> names;
  for (const auto& [name, digest] : verify_folder(folder_of(1)).files) names.push_back(name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"config.json", "generation_config.json", "model.safetensors",
                                      "optimizer_00000_of_00001.safetensors", "tokenizer.json",
                                      "trainer_state.json"}));
  const SafetensorsFile optimizer(folder_of(1) / "optimizer_00000_of_00001.safetensors");
  EXPECT_EQ(optimizer.at("exp_avg/backbone.norm_f.weight[0:23]").dtype_name, "F32");
  EXPECT_EQ(optimizer.metadata().at("step"), "1");
}

TEST_F(CheckpointTest, EqualWeightsGiveEqualModelFiles) {
  save({1});
  const FileDigest first = digest_file(folder_of(1) / "model.safetensors");
  fs::remove_all(output_);
  save({1});
  EXPECT_EQ(digest_file(folder_of(1) / "model.safetensors"), first);
}

TEST_F(CheckpointTest, SavingTheSameStepAgainDoesNothing) {
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 0});
  save_one(store, 5);
  const auto time = fs::last_write_time(folder_of(5));
  save_one(store, 5);
  EXPECT_EQ(fs::last_write_time(folder_of(5)), time);
}

TEST_F(CheckpointTest, AnyFlippedBitIsSeen) {
  save({1});
  std::mt19937 random(1);
  for (const auto& [name, digest] : verify_folder(folder_of(1)).files)
    for (int i = 0; i < 800; ++i) expect_flip_is_seen(folder_of(1) / name, random());
  for (int i = 0; i < 800; ++i) expect_flip_is_seen(folder_of(1) / Manifest::kFileName, random());
  EXPECT_EQ(resumed_step(), 1);
}

TEST_F(CheckpointTest, AnyWrongLengthIsSeen) {
  save({1});
  for (const auto& entry : fs::directory_iterator(folder_of(1))) {
    const std::string good = contents_of(entry.path());
    for (std::size_t bytes = 0; bytes < good.size(); bytes += 1 + good.size() / 100) {
      overwrite(entry.path(), good.substr(0, bytes));
      ASSERT_THROW(verify_folder(folder_of(1)), Error) << entry.path() << " cut at " << bytes;
    }
    if (good.empty()) continue;  // the marker
    overwrite(entry.path(), good + "x");
    ASSERT_THROW(verify_folder(folder_of(1)), Error) << entry.path();
    overwrite(entry.path(), std::string(good.size(), '\0'));
    ASSERT_THROW(verify_folder(folder_of(1)), Error) << entry.path();
    overwrite(entry.path(), good);
  }
  EXPECT_EQ(resumed_step(), 1);
}

TEST_F(CheckpointTest, FallsBackLoudlyToAnOlderOne) {
  save({1, 2, 3});
  overwrite(folder_of(3) / "model.safetensors", "short");
  fs::remove(folder_of(2) / "trainer_state.json");
  EXPECT_EQ(resumed_step(), 1);
  EXPECT_THAT(log_, AllOf(HasSubstr("step_00000003 is damaged"), HasSubstr("has 5 bytes"),
                          HasSubstr("step_00000002 is damaged"), HasSubstr("is missing")));
}

TEST_F(CheckpointTest, NeverStartsOverWhenAllAreDamaged) {
  save({1, 2, 3});
  overwrite(folder_of(1) / "config.json", "{}");
  fs::remove(folder_of(2) / Manifest::kFileName);
  fs::remove_all(folder_of(3));
  fs::create_directory(folder_of(3));
  EXPECT_THAT(resume_error(), AllOf(HasSubstr("step_00000001: '"), HasSubstr("step_00000002: "),
                                    HasSubstr("step_00000003: ")));
}

TEST_F(CheckpointTest, FilesBesideTheManifestsOnlyWarn) {
  save({1});
  overwrite(folder_of(1) / "notes.txt", "a good one");
  EXPECT_EQ(resumed_step(), 1);
  EXPECT_THAT(log_, AllOf(HasSubstr("warning"), HasSubstr("notes.txt")));
}

TEST_F(CheckpointTest, TheManifestCannotLeadOutOfItsFolder) {
  save({1});
  overwrite(root_ / "outside", "text");
  for (const char* name : {"../outside", "/etc/passwd", "..", ""}) {
    Manifest manifest = read_manifest(folder_of(1));
    manifest.files[name] = {4, 0};
    overwrite(folder_of(1) / Manifest::kFileName, to_text(manifest));
    EXPECT_THAT(resume_error(), HasSubstr("is not the name of a file"));
    manifest.files.erase(name);
    overwrite(folder_of(1) / Manifest::kFileName, to_text(manifest));
  }
}

TEST_F(CheckpointTest, LatestIsNeverTrusted) {
  save({1, 2});
  const fs::path latest = output_ / "checkpoints/latest";
  fs::remove(latest);
  overwrite(latest, "");
  EXPECT_EQ(resumed_step(), 2);
  overwrite(latest, "step_00000001");
  EXPECT_EQ(resumed_step(), 2);
  fs::remove(latest);
  fs::create_symlink("step_00000099", latest);
  EXPECT_EQ(resumed_step(), 2);
}

TEST_F(CheckpointTest, OnlyExactNamesCount) {
  save({9, 10});
  fs::rename(folder_of(10), folder_of(100000000));  // nine digits follow eight
  EXPECT_THAT(fs::exists(output_ / "checkpoints/step_100000000"), true);
  for (const char* name : {"step_-1", "step_1e3", "step_00000011.bak", "step_9223372036854775808",
                           "step_000000012", "step_13", "xstep_00000014", "step_00000015 "})
    fs::copy(folder_of(9), output_ / "checkpoints" / name, fs::copy_options::recursive);
  overwrite(output_ / "checkpoints/step_00000016", "a file");
  const RunFolder run(output_);
  EXPECT_EQ(CheckpointStore(run, {.keep = 0}).steps(), (std::vector<std::int64_t>{9, 100000000}));
}

TEST_F(CheckpointTest, ACheckpointUnderAnotherStepsNameIsRejected) {
  save({1, 2});
  fs::rename(folder_of(2), folder_of(7));
  EXPECT_EQ(resumed_step(), 1);
  EXPECT_THAT(log_, HasSubstr("holds step 2 by MANIFEST.json and step 2 by trainer_state.json"));
}

TEST_F(CheckpointTest, AStateOfAnotherStepIsRejectedAndNamed) {
  save({1, 2});
  overwrite(folder_of(2) / TrainerState::kFileName, to_text(state_at(7)));
  renew_manifest(folder_of(2));
  EXPECT_EQ(resumed_step(), 1);
  EXPECT_THAT(log_, HasSubstr("holds step 2 by MANIFEST.json and step 7 by trainer_state.json"));
}

TEST_F(CheckpointTest, AStateWithImpossibleCountsIsRejected) {
  save({1, 2});
  constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();
  const std::pair<const char*, TrainerState> cases[] = {
      {"tokens: -1", {.step = 2, .tokens = -1, .next_row = 16}},
      {"tokens: 9223372036854775807", {.step = 2, .tokens = kLargest, .next_row = 16}},
      {"next_row: -1", {.step = 2, .tokens = 2000, .next_row = -1}},
      {"next_row: 9223372036854775807", {.step = 2, .tokens = 2000, .next_row = kLargest}},
      {"step: 2, expected 0 to the 1 rows", {.step = 2, .tokens = 2000, .next_row = 1}},
  };
  for (const auto& [message, state] : cases) {
    overwrite(folder_of(2) / TrainerState::kFileName, to_text(state));
    renew_manifest(folder_of(2));
    EXPECT_EQ(resumed_step(), 1);
    EXPECT_THAT(log_, HasSubstr(std::string("trainer_state.json: ") + message));
  }
}

TEST_F(CheckpointTest, SaysWhetherOlderOnesWent) {
  const auto removes = [&](CheckpointStore& store, std::int64_t step) {
    store.save(state_at(step), tiny_store_config(), tiny_store(1), {});
    return store.remove_superseded();
  };
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 2});
  EXPECT_FALSE(removes(store, 1));
  EXPECT_FALSE(removes(store, 2));
  EXPECT_TRUE(removes(store, 3));
  EXPECT_FALSE(store.remove_superseded());
  CheckpointStore keeps_all(run, {.keep = 0});
  EXPECT_FALSE(removes(keeps_all, 4));
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{2, 3, 4}));
}

TEST_F(CheckpointTest, RefusesPartsOfOtherSaves) {
  save({1, 2});
  const std::string optimizer = optimizer_file_name({0, 1});
  fs::copy_file(folder_of(1) / optimizer, folder_of(2) / optimizer,
                fs::copy_options::overwrite_existing);
  renew_manifest(folder_of(2));
  EXPECT_THAT(resume_error(),
              AllOf(HasSubstr(optimizer), HasSubstr("does not belong to rank 0 of 1 of step 2")));
}

TEST_F(CheckpointTest, OfWeightsAloneIsAModelButNoRunGoesOnFromIt) {
  {
    const RunFolder run(output_);
    CheckpointStore store(run, {.keep = 0, .contents = CheckpointContents::kWeights});
    save_one(store, 3);
  }
  EXPECT_EQ(find_model(output_), folder_of(3));
  ParameterStore parameters = tiny_store(1000);
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 0});
  const auto resumed = store.resume(tiny_inputs(), DataChange::kRefuse, parameters);
  ASSERT_TRUE(resumed);
  EXPECT_FALSE(resumed->has_moments);
  EXPECT_TRUE(equal_bits(parameters.flat_values(), tiny_store(3).flat_values()));
}

TEST_F(CheckpointTest, OfWeightsAloneTakesNoOthersPlace) {
  save({2});
  ParameterStore parameters = tiny_store(1000);
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 1, .contents = CheckpointContents::kWeights});
  try {
    store.resume(tiny_inputs(), DataChange::kRefuse, parameters);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kConfig);
    EXPECT_THAT(error.what(), HasSubstr("weights alone would take its place"));
  }
}

TEST_F(CheckpointTest, RefusesTensorsOfAnotherModel) {
  save({1});
  std::vector<ParameterSpec> specs = tiny_parameters();
  specs[3].shape = {45};
  specs[3].file_shape = {45};
  specs[4].name = "backbone.norm_g.weight";
  ParameterStore other(test_exec(), specs, Dtype::kF32, StoreContents::kValuesAndTraining);
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 0});
  try {
    store.resume(tiny_inputs(), DataChange::kRefuse, other);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("mixer.D: is (46), expected (45)"),
                                    HasSubstr("norm_g.weight: is missing"),
                                    HasSubstr("norm_f.weight: is not a part")));
  }
}

TEST_F(CheckpointTest, AnOptimizerFileBesideTheManifestsIsNoPartOfTheCheckpoint) {
  save({1, 2});
  std::filesystem::copy(folder_of(1) / "optimizer_00000_of_00001.safetensors",
                        folder_of(2) / "optimizer_00001_of_00002.safetensors");
  EXPECT_EQ(resumed_step(), 2);
}

TEST_F(CheckpointTest, ANewerProgramsCheckpointIsNotPassedOver) {
  save({1, 2});
  Manifest manifest = read_manifest(folder_of(2));
  std::string text = to_text(manifest);
  const std::string version = "\"format_version\": 1";
  text.replace(text.find(version), version.size(), "\"format_version\": 2");
  overwrite(folder_of(2) / Manifest::kFileName, text);
  EXPECT_EQ(resumed_step(), 1);  // its hash is wrong: damaged, not newer
  // With the right hash, which the damaged text's error does not tell.
  nlohmann::json body = nlohmann::json::parse(text)["manifest"];
  Hasher hasher;
  hasher.update(bytes_of(body.dump()));
  const nlohmann::json whole = {{"manifest", body}, {"xxh3", hash_text(hasher.digest())}};
  overwrite(folder_of(2) / Manifest::kFileName, whole.dump(2) + "\n");
  EXPECT_THAT(resume_error(), AllOf(HasSubstr("written by version"), HasSubstr("format 2")));
}

TEST_F(CheckpointTest, ComparesTheRunsInputs) {
  const RunInputs saved = tiny_inputs();
  const auto refusal = [&](RunInputs now, DataChange change) -> std::string {
    testing::internal::CaptureStderr();
    try {
      check_inputs(saved, now, change);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
      testing::internal::GetCapturedStderr();
      return error.what();
    }
    log_ = testing::internal::GetCapturedStderr();
    return "";
  };
  RunInputs now = saved;
  EXPECT_EQ(refusal(now, DataChange::kRefuse), "");
  EXPECT_EQ(log_, "");

  now.config["optim.lr"] = "0.002";
  now.config["log.every"] = "5";
  EXPECT_EQ(refusal(now, DataChange::kRefuse), "");
  EXPECT_THAT(log_, AllOf(HasSubstr("optim.lr: 0.001 -> 0.002"), HasSubstr("log.every: (none)")));

  now.config["seed"] = "2";
  EXPECT_THAT(refusal(now, DataChange::kRefuse), HasSubstr("seed: 1 -> 2"));
  EXPECT_EQ(refusal(now, DataChange::kAllow), "");
  EXPECT_THAT(log_, HasSubstr("seed: 1 -> 2"));

  now = saved;
  now.data_fingerprint = "other";
  EXPECT_THAT(refusal(now, DataChange::kRefuse), HasSubstr("fingerprint -> other"));
  EXPECT_EQ(refusal(now, DataChange::kAllow), "");

  now = saved;
  now.config["model.vocab_size"] = "30";
  EXPECT_THAT(refusal(now, DataChange::kAllow), HasSubstr("model.vocab_size: 29 -> 30"));
}

TEST_F(CheckpointTest, RunInputsHaveEveryKeyOfTheConfiguration) {
  RunConfig config;
  config.optim.lr = 0.125;
  const RunInputs inputs = make_run_inputs(config, "f");
  EXPECT_EQ(inputs.config.size(), run_options().size());
  EXPECT_EQ(inputs.config.at("optim.lr"), "0.125");
  // What check_inputs() knows by name exists.
  for (const char* key :
       {"seed", "data.seq_len", "model.vocab_size", "model.hidden_size", "model.num_hidden_layers",
        "model.state_size", "model.conv_kernel", "model.expand", "model.time_step_rank",
        "model.use_bias", "model.use_conv_bias", "model.tie_word_embeddings",
        "model.layer_norm_epsilon"}) {
    RunInputs changed = inputs;
    ASSERT_TRUE(changed.config.contains(key)) << key;
    changed.config[key] = "changed";
    EXPECT_THROW(check_inputs(inputs, changed, DataChange::kRefuse), Error) << key;
  }
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (const std::int64_t keep : {0, 1, 2, 3, 4}) {
    fs::remove_all(output_);
    const RunFolder run(output_);
    CheckpointStore store(run, {.keep = keep});
    for (std::int64_t step = 1; step <= 6; ++step) {
      save_one(store, step);
      const std::int64_t kept = keep == 0 ? step : std::min(keep, step);
      std::vector<std::int64_t> expected(static_cast<std::size_t>(kept));
      std::iota(expected.begin(), expected.end(), step - kept + 1);
      EXPECT_EQ(store.steps(), expected) << "keep " << keep;
    }
    EXPECT_EQ(names_in_checkpoints().size(), store.steps().size() + 1);  // and latest
  }
}

TEST_F(CheckpointTest, DamagedOnesAreNotCountedAndGiveWay) {
  save({1, 2, 3, 4});
  overwrite(folder_of(3) / "config.json", "{}");
  overwrite(folder_of(4) / "config.json", "{}");
  const RunFolder run(output_);
  CheckpointStore store(run, {.keep = 2});
  ParameterStore parameters = tiny_store(0);
  EXPECT_EQ(store.resume(tiny_inputs(), DataChange::kRefuse, parameters)->state.step, 2);
  save_one(store, 3);  // in the damaged one's place
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{2, 3, 4}));
  verify_folder(folder_of(3));
  save_one(store, 5);
  EXPECT_EQ(store.steps(), (std::vector<std::int64_t>{3, 5}));
}

TEST_F(CheckpointTest, RemovesOnlyWhatItMade) {
  save({1});
  const fs::path checkpoints = output_ / "checkpoints";
  fs::create_directory(checkpoints / "step_00000002.tmp-foreign");
  overwrite(checkpoints / "step_00000002.tmp-foreign/data", "precious");
  fs::create_directory(checkpoints / "step_00000003.tmp-empty");  // died before it was marked
  fs::create_directory(checkpoints / "other.tmp-1");
  EXPECT_EQ(resumed_step(), 1);
  EXPECT_THAT(log_, HasSubstr("step_00000002.tmp-foreign"));
  EXPECT_EQ(names_in_checkpoints(),
            (std::vector<std::string>{"latest", "other.tmp-1", "step_00000001",
                                      "step_00000002.tmp-foreign"}));
  EXPECT_EQ(contents_of(checkpoints / "step_00000002.tmp-foreign/data"), "precious");
}

TEST_F(CheckpointTest, SetsAsideWhatIsInTheWay) {
  save({1});
  fs::create_directory(folder_of(2));
  overwrite(folder_of(2) / "data", "precious");
  overwrite(folder_of(3), "a file");
  fs::create_symlink("nowhere", folder_of(4));
  overwrite(folder_of(4).string() + ".not-a-checkpoint-1", "of an earlier time");
  testing::internal::CaptureStderr();
  save({2, 3, 4});
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("is now 'step_00000004.not-a-"));
  for (const std::int64_t step : {2, 3, 4}) verify_folder(folder_of(step));
  const auto aside = [&](int step, int number) {
    return fs::path(fmt::format("{}.not-a-checkpoint-{}", folder_of(step).string(), number));
  };
  EXPECT_EQ(contents_of(aside(2, 1) / "data"), "precious");
  EXPECT_EQ(contents_of(aside(3, 1)), "a file");
  EXPECT_EQ(contents_of(aside(4, 1)), "of an earlier time");
  EXPECT_EQ(fs::read_symlink(aside(4, 2)), "nowhere");
  EXPECT_EQ(resumed_step(), 4);
}

TEST_F(CheckpointTest, OneRunPerFolder) {
  std::optional<RunFolder> first(std::in_place, output_);
  try {
    RunFolder second(output_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kCheckpoint);
    EXPECT_THAT(error.what(), AllOf(HasSubstr(output_.string()),
                                    HasSubstr(fmt::format("process {} on ", ::getpid()))));
  }
  first.reset();
  RunFolder third(output_);
}

TEST_F(CheckpointTest, UnusableFoldersAreRefusedAtTheStart) {
  const auto refusal = [](const fs::path& path) -> std::string {
    try {
      RunFolder run(path);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kIo);
      return error.what();
    }
    return "";
  };
  overwrite(root_ / "file", "");
  EXPECT_THAT(refusal(root_ / "file"),
              AllOf(HasSubstr("file/checkpoints"), HasSubstr("directory")));
  EXPECT_THAT(refusal(root_ / "file/below"), HasSubstr("cannot create"));
  fs::create_symlink(root_ / "loop", root_ / "loop");
  EXPECT_THAT(refusal(root_ / "loop"), HasSubstr("symbolic links"));
  EXPECT_THAT(refusal("/proc/jiboia"), HasSubstr("cannot create"));
  fs::create_directories(root_ / "b");
  overwrite(root_ / "b/checkpoints", "");
  EXPECT_THAT(refusal(root_ / "b"), HasSubstr("b/checkpoints"));
  EXPECT_EQ(refusal(root_ / "new/with/parents"), "");
}

TEST_F(CheckpointTest, WarnsWhenTheDiskIsSmall) {
  const RunFolder run(output_);
  testing::internal::CaptureStderr();
  // Room for some, and not for all.
  const auto available = static_cast<std::int64_t>(fs::space(output_).available);
  run.warn_if_space_is_short(available / 20, 1);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  testing::internal::CaptureStderr();
  run.warn_if_space_is_short(available / 20, 30);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              AllOf(HasSubstr("warning"), HasSubstr("with 30 more"), HasSubstr("free")));
}

TEST_F(CheckpointTest, CountsTheCheckpointsThatAreThereAtOnce) {
  save({1, 2});
  const RunFolder run(output_);
  EXPECT_EQ(CheckpointStore(run, {.keep = 3}).more_at_once(10), 2);
  EXPECT_EQ(CheckpointStore(run, {.keep = 3}).more_at_once(1), 1);
  EXPECT_EQ(CheckpointStore(run, {.keep = 3}).more_at_once(0), 0);
  EXPECT_EQ(CheckpointStore(run, {.keep = 2}).more_at_once(10), 1);
  EXPECT_EQ(CheckpointStore(run, {.keep = 1}).more_at_once(10), 1);
  EXPECT_EQ(CheckpointStore(run, {.keep = 0}).more_at_once(10), 10);
}

TEST_F(CheckpointTest, FindsTheModelThatIsMeant) {
  save({1, 2, 3});
  overwrite(folder_of(3) / "config.json", "{}");
  EXPECT_EQ(find_model(output_), folder_of(2));
  EXPECT_EQ(find_model(output_ / "checkpoints"), folder_of(2));
  EXPECT_EQ(find_model(folder_of(1)), folder_of(1));
  EXPECT_THROW(find_model(folder_of(3)), Error);
  fs::create_directory(root_ / "plain");
  EXPECT_EQ(find_model(root_ / "plain"), root_ / "plain");
  fs::create_directory(root_ / "plain/checkpoints");
  overwrite(root_ / "plain/config.json", "{}");
  EXPECT_EQ(find_model(root_ / "plain"), root_ / "plain");
  fs::create_directories(root_ / "new/checkpoints");
  EXPECT_THROW(find_model(root_ / "new"), Error);
}

TEST_F(CheckpointTest, ALinkMeansTheFolderThatItLeadsToNow) {
  save({1, 2});
  const fs::path latest = output_ / "checkpoints/latest";
  EXPECT_EQ(find_model(latest), folder_of(2));
  EXPECT_EQ(find_model(latest / ""), folder_of(2));
  save({3});
  EXPECT_EQ(find_model(latest), folder_of(3));
  fs::remove_all(folder_of(3));
  EXPECT_THROW(find_model(latest), Error);
}

TEST_F(CheckpointTest, AModelThatGoesAwayWhileItIsReadIsRefused) {
  const fs::path folder = root_ / "model";
  const auto error_of = [&](bool removes, const std::function<int()>& read) -> std::string {
    fs::create_directories(folder / "in");
    try {
      read_while_there(folder, [&] {
        if (removes) fs::remove_all(folder);
        return read();
      });
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), removes ? ErrorKind::kCheckpoint : ErrorKind::kData);
      return error.what();
    }
    return "";
  };
  const auto finds_nothing = []() -> int { fail(ErrorKind::kData, "no tokenizer"); };
  const auto lists = [&] { return static_cast<int>(fs::directory_iterator(folder)->exists()); };
  EXPECT_EQ(error_of(false, [] { return 1; }), "");
  EXPECT_EQ(error_of(false, finds_nothing), "no tokenizer");
  const auto says_so = AllOf(HasSubstr(folder.string() + "' was removed while it was read"),
                             HasSubstr("checkpoint.keep"));
  EXPECT_THAT(error_of(true, [] { return 1; }), says_so);
  EXPECT_THAT(error_of(true, finds_nothing), says_so);
  EXPECT_THAT(error_of(true, lists), says_so);
}

TEST_F(CheckpointTest, FindsTheModelOfARunThatGoesOn) {
  save({1});
  std::atomic<bool> done = false;
  std::thread run([&] {
    const RunFolder folder(output_);
    CheckpointStore store(folder, {.keep = 1});
    for (std::int64_t step = 2; !done; ++step) save_one(store, step);
  });
  std::vector<std::string> errors;
  std::int64_t found = 0;
  testing::internal::CaptureStderr();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  while (std::chrono::steady_clock::now() < end) {
    for (const char* name : {"", "checkpoints", "checkpoints/latest"}) {
      try {
        find_model(output_ / name);
        ++found;
      } catch (const std::exception& error) {
        errors.push_back(error.what());
      }
    }
  }
  done = true;
  run.join();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_THAT(errors, testing::Each(HasSubstr("was removed while it was read")));
  EXPECT_GT(found, 10);
}

TEST_F(CheckpointTest, ReadsTokenizerFiles) {
  overwrite(root_ / "tokenizer.json", "1");
  overwrite(root_ / "special_tokens_map.json", "2");
  overwrite(root_ / "README.md", "3");
  const auto files = read_tokenizer_files(root_.path());
  ASSERT_EQ(files.size(), 2U);
  EXPECT_EQ(files[0].name + files[0].contents, "tokenizer.json1");
  EXPECT_EQ(files[1].name + files[1].contents, "special_tokens_map.json2");
}

}  // namespace
}  // namespace jiboia
