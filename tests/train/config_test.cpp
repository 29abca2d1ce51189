#include "train/config/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <ctime>
#include <fstream>
#include <functional>
#include <set>

#include "core/error.h"
#include "tests/support/temporary_folder.h"

namespace jiboia {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kMinimal = R"(output_dir: runs/x
data:
  train: shards/train
  seq_len: 256
train:
  micro_batch_size: 2
  global_batch_size: 4
  max_steps: 100
optim:
  lr: 1e-3
)";

/// What `call` says when it fails with ErrorKind::kConfig; "" when it does not.
std::string config_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kConfig) << error.what();
    return error.what();
  }
  return "";
}

/// The error of the minimal configuration with `more` at its end, from line 11 on.
std::string error_of(const std::string& more, const std::vector<std::string>& overrides = {}) {
  return config_error([&] { parse_config(kMinimal + more, "train.yaml", overrides); });
}

std::string error_of_override(const std::string& override) { return error_of("", {override}); }

TEST(Config, ReadsAMinimalFileAndKeepsDefaults) {
  const RunConfig config = parse_config(kMinimal, "train.yaml");
  EXPECT_EQ(config.output_dir, "runs/x");
  EXPECT_EQ(config.data.train, "shards/train");
  EXPECT_EQ(config.data.seq_len, 256);
  EXPECT_EQ(config.train.global_batch_size, 4);
  EXPECT_EQ(config.optim.lr, 1e-3);
  EXPECT_EQ(config.model.hidden_size, 768);
  EXPECT_EQ(config.model.time_step_rank, 48) << "resolved";
  EXPECT_EQ(config.model.initialisation, Initialisation::kMambaSsm);
  EXPECT_EQ(config.model.initializer_range, 0.02);
}

TEST(Config, TakesTheInitialisationsDefaultsInAnyOrder) {
  const RunConfig config =
      parse_config(std::string(kMinimal) +
                       "model:\n  vocab_size: 99\n  rescale_prenorm_residual: true\n"
                       "  initialisation: huggingface_4_39\n",
                   "train.yaml");
  EXPECT_EQ(config.model.initializer_range, 0.1);
  EXPECT_TRUE(config.model.rescale_prenorm_residual);
  EXPECT_EQ(config.model.vocab_size, 99);
  EXPECT_EQ(parse_config(kMinimal, "t", {"model.initialisation=huggingface_4_56"})
                .model.initializer_range,
            0.1);
}

TEST(Config, AcceptsEverySpellingOfNumbersThatIsNotAmbiguous) {
  for (const char* text : {"1e-4", "1.0e-4", "0.0001", "1E-4", ".0001", "1.e-4"}) {
    EXPECT_EQ(parse_config(kMinimal, "t", {std::string("optim.lr=") + text}).optim.lr, 1e-4)
        << text;
  }
  EXPECT_EQ(parse_config(kMinimal, "t", {"optim.weight_decay=0"}).optim.weight_decay, 0);
  EXPECT_EQ(parse_config(kMinimal, "t", {"seed=9223372036854775807"}).seed, 9223372036854775807);
}

TEST(Config, AcceptsAByteOrderMarkAndWindowsLines) {
  std::string text = "\xEF\xBB\xBF";
  for (const char c : std::string(kMinimal))
    text += c == '\n' ? std::string("\r\n") : std::string(1, c);
  EXPECT_EQ(parse_config(text, "t"), parse_config(kMinimal, "t"));
  EXPECT_THAT(config_error([&] { parse_config(text + "sed: 1\r\n", "t"); }), StartsWith("t:11:1:"));
}

TEST(Config, SuggestsTheKeyThatWasMeant) {
  EXPECT_EQ(error_of("schedule:\n  name: cosine\n  warmup_step: 3\n"),
            "train.yaml:13:3: unknown key 'warmup_step' in section 'schedule' (did you mean "
            "'schedule.warmup_steps'?)");
  EXPECT_EQ(error_of("learning_rte: 1\n"),
            "train.yaml:11:1: unknown key 'learning_rte' (did you mean 'optim.lr'?)");
  EXPECT_EQ(error_of("chekpoint:\n  every: 1\n"),
            "train.yaml:11:1: unknown key 'chekpoint' (did you mean 'checkpoint'?)");
  EXPECT_EQ(error_of("zebra_crossing: 1\n"), "train.yaml:11:1: unknown key 'zebra_crossing'");
}

TEST(Config, KnowsOtherTrainersNames) {
  const std::pair<const char*, const char*> names[] = {
      {"learning_rate", "optim.lr"},
      {"block_size", "data.seq_len"},
      {"per_device_train_batch_size", "train.micro_batch_size"},
      {"gradient_accumulation_steps", "train.global_batch_size"},
      {"lr-cooldown-end", "schedule.min_lr"},
      {"lr_warmup_iters", "schedule.warmup_steps"},
      {"train_iters", "train.max_steps"},
      {"adam_beta2", "optim.betas"},
      {"max_grad_norm", "optim.grad_clip"},
      {"z_loss_coefficient", "loss.z_loss"},
      {"bf16", "precision"},
      {"save_total_limit", "checkpoint.keep"},
      {"logging_steps", "log.every"},
      {"d_model", "model.hidden_size"},
  };
  for (const auto& [theirs, ours] : names) {
    EXPECT_THAT(error_of(std::string(theirs) + ": 1\n"),
                HasSubstr("(did you mean '" + std::string(ours) + "'?)"));
  }
}

TEST(Config, RefusesValuesOfTheWrongType) {
  const std::pair<const char*, const char*> cases[] = {
      {"seed: one\n", "train.yaml:11:7: seed is 'one', expected an integer 0 or more"},
      {"seed: 1.5\n", "train.yaml:11:7: seed is '1.5', expected an integer"},
      {"seed: 1e3\n", "train.yaml:11:7: seed is '1e3', expected an integer"},
      {"seed: 010\n",
       "train.yaml:11:7: seed is '010', expected an integer 0 or more; leading "
       "zeros could mean octal"},
      {"seed: 0o10\n", "train.yaml:11:7: seed is '0o10'"},
      {"seed: 0x10\n", "train.yaml:11:7: seed is '0x10'"},
      {"seed: 1_000\n", "train.yaml:11:7: seed is '1_000'"},
      {"seed: 9223372036854775808\n", "train.yaml:11:7: seed is '9223372036854775808'"},
      {"seed: '1'\n",
       "train.yaml:11:7: seed is the quoted text '1', expected an integer 0 or "
       "more; write it without quotes"},
      {"seed: \"1\"\n", "train.yaml:11:7: seed is the quoted text '1'"},
      {"seed: |\n  1\n", "train.yaml:11:7: seed is the quoted text"},
      {"seed:\n", "seed is empty, expected an integer"},
      {"seed: ~\n", "train.yaml:11:7: seed is empty"},
      {"seed: null\n", "train.yaml:11:7: seed is empty"},
      {"seed: [1]\n", "train.yaml:11:7: seed is a list"},
      {"seed: {a: 1}\n", "train.yaml:11:7: seed is a section"},
      {"precision: bf61\n", "train.yaml:11:12: precision is 'bf61', expected one of fp32, bf16"},
      {"init_from: []\n", "train.yaml:11:12: init_from is a list, expected a text"},
      {"init_from:\n", "init_from is empty, expected a text"},
      {"loss:\n  z_loss: .nan\n", "train.yaml:12:11: loss.z_loss is '.nan'"},
      {"loss:\n  z_loss: nan\n", "train.yaml:12:11: loss.z_loss is 'nan'"},
      {"loss:\n  z_loss: inf\n", "train.yaml:12:11: loss.z_loss is 'inf'"},
      {"loss:\n  z_loss: 1e999\n", "train.yaml:12:11: loss.z_loss is '1e999'"},
      {"loss:\n  z_loss: 0x1p-3\n", "train.yaml:12:11: loss.z_loss is '0x1p-3'"},
      {"loss:\n  z_loss: 1,5\n", "train.yaml:12:11: loss.z_loss is '1,5'"},
      {"model:\n  use_bias: yes\n",
       "train.yaml:12:13: model.use_bias is 'yes', expected true or false"},
      {"model:\n  use_bias: 1\n", "train.yaml:12:13: model.use_bias is '1'"},
      {"model:\n  use_bias: \"true\"\n", "model.use_bias is the quoted text 'true'"},
      {"loss: 1\n", "train.yaml:11:7: 'loss' is a section: expected keys below it"},
      {"loss:\n", "'loss' is a section: expected keys below it"},
  };
  for (const auto& [text, message] : cases) EXPECT_THAT(error_of(text), HasSubstr(message)) << text;
  for (const char* list : {"0.9", "[0.9]", "[0.9, 0.95, 0.99]", "[0.9, x]", "[0.9, '0.95']"}) {
    EXPECT_THAT(error_of_override(std::string("optim.betas=") + list),
                HasSubstr("expected a list of two numbers from 0 to below 1"));
  }
}

TEST(Config, RefusesValuesOutOfRange) {
  const std::pair<const char*, const char*> cases[] = {
      {"seed: -1\n", "train.yaml:11:7: seed is -1, expected an integer 0 or more"},
      {"threads: 5000\n", "train.yaml:11:10: threads is 5000, expected an integer from 0 to 4096"},
      {"model:\n  state_size: 0\n", "train.yaml:12:15: model.state_size is 0, expected an integer"},
      {"model:\n  vocab_size: 0\n", "train.yaml:12:15: model.vocab_size is 0"},
      {"log:\n  every: 0\n", "train.yaml:12:10: log.every is 0, expected an integer from 1"},
      {"loss:\n  z_loss: -1e-9\n", "train.yaml:12:11: loss.z_loss is -1e-09"},
  };
  for (const auto& [text, message] : cases) EXPECT_THAT(error_of(text), StartsWith(message));
  EXPECT_THAT(error_of_override("optim.lr=0"), HasSubstr("expected a number from 1e-37 to 1e+37"));
  for (const char* number : {"optim.lr=1e39", "optim.lr=1e-46", "optim.eps=1e-46", "optim.eps=2",
                             "optim.weight_decay=1e40", "optim.grad_clip=1e39", "loss.z_loss=1e39",
                             "model.layer_norm_epsilon=1e39", "model.layer_norm_epsilon=1e-46",
                             "model.initializer_range=1e20", "model.time_step_max=1e39",
                             "model.time_step_scale=1e38", "model.time_step_floor=1e30"}) {
    EXPECT_THAT(error_of_override(number), HasSubstr("expected a number from ")) << number;
  }
  for (const char* number :
       {"optim.lr=1e37", "optim.lr=1e-37", "optim.eps=1", "optim.grad_clip=1e9",
        "model.layer_norm_epsilon=1e-12", "model.initializer_range=1"}) {
    EXPECT_EQ(error_of_override(number), "");
  }
  EXPECT_THAT(error_of_override("optim.betas=[0.9, 1]"), HasSubstr("optim.betas is [0.9, 1]"));
  EXPECT_THAT(error_of("", {"model.hidden_size=100000", "model.num_hidden_layers=4000",
                            "data.seq_len=16000000", "train.micro_batch_size=1000",
                            "train.global_batch_size=1000"}),
              HasSubstr("more than any machine holds"));
  EXPECT_THAT(error_of_override("output_dir="), HasSubstr("output_dir is \"\", expected a text"));
}

TEST(Config, NamesBothKeysThatDoNotGoTogether) {
  const auto both = [](const std::string& text, const char* one, const char* other) {
    EXPECT_THAT(error_of(text), AllOf(StartsWith("train.yaml:1"), HasSubstr(one), HasSubstr(other)))
        << text;
  };
  both("schedule:\n  warmup_steps: 101\n", "schedule.warmup_steps is 101",
       "train.max_steps, which is 100");
  both("schedule:\n  min_lr: 2e-3\n", "schedule.min_lr is 0.002", "optim.lr, which is 0.001");
  both("schedule:\n  name: wsd\n", "schedule.name is wsd", "schedule.cooldown_steps");
  both("schedule:\n  name: wsd\n  warmup_steps: 60\n  cooldown_steps: 41\n",
       "schedule.cooldown_steps is 41", "schedule.warmup_steps");
  both("eval:\n  every: 5\n", "eval.every is 5", "data.validation");
  both("model:\n  vocab_size: 3\n  eos_token_id: 3\n", "model.eos_token_id is 3", "vocab_size");
  EXPECT_EQ(error_of_override("train.global_batch_size=5"),
            "--set 'train.global_batch_size=5': train.global_batch_size is 5, not a multiple of "
            "train.micro_batch_size, which is 2");
  EXPECT_EQ(error_of("schedule:\n  warmup_steps: 100\n"), "") << "all warmup is allowed";
}

TEST(Config, RefusesWhatYamlAllowsButReadersDisagreeOn) {
  const std::pair<std::string, const char*> cases[] = {
      {"seed: 1\nseed: 2\n", "train.yaml:12:1: duplicate key 'seed'"},
      {"loss:\n  z_loss: 1\n  'z_loss': 2\n", "train.yaml:13:3: duplicate key 'z_loss'"},
      {"<<: {seed: 1}\n", "train.yaml:11:1: merge keys ('<<') are not allowed"},
      {"seed: !!int 1\n", "train.yaml:11:7: tags are not allowed"},
      {"init_from: ! x\n", "train.yaml:11:12: tags are not allowed"},
      {"loss: !x {z_loss: 1}\n", "train.yaml:11:7: tags are not allowed"},
      {"seed: &a 1\n", "train.yaml:11:7: anchors are not allowed"},
      {"loss: &a\n  z_loss: 1\n", "train.yaml:11:7: anchors are not allowed"},
      {"seed: *a\n", "train.yaml:11:7: the referenced anchor is not defined"},
      {"---\nseed: 1\n", "train.yaml:11:1: a second document"},
      {"...\nseed: 1\n", "train.yaml:12:1: a second document"},
      {"seed:\t1\n", "train.yaml:11:6: a tab: use spaces"},
      {"# a\tb\n", "train.yaml:11:4: a tab: use spaces"},
      {std::string("seed: 1\0\n", 9), "train.yaml:11:8: a control character (byte 0x00)"},
      {"init_from: \"a\\0b\"\n", "train.yaml:11:12: a zero byte in a text"},
      {"# \x1b[0m\n", "train.yaml:11:3: a control character (byte 0x1b)"},
      {"# a\rb\n", "train.yaml:11:4: a control character (byte 0x0d)"},
      {"# \xff\n", "train.yaml:11:3: not UTF-8 (byte 0xff)"},
      {"# \xc0\xaf\n", "train.yaml:11:3: not UTF-8"},          // longer than needed
      {"# \xe0\x80\xaf\n", "train.yaml:11:3: not UTF-8"},      // longer than needed
      {"# \xed\xa0\x80\n", "train.yaml:11:3: not UTF-8"},      // a surrogate
      {"# \xf4\x90\x80\x80\n", "train.yaml:11:3: not UTF-8"},  // above U+10FFFF
      {"# \xe2\x82", "train.yaml:11:3: not UTF-8"},            // cut off
      {"? [a]\n: 1\n", "a key must be a text"},
      {"~: 1\n", "train.yaml:11:1: a key must be a text"},
      {"seed: [1\n", "train.yaml:"},
      {"seed: %x\n", "train.yaml:11:"},
  };
  for (const auto& [text, message] : cases) EXPECT_THAT(error_of(text), HasSubstr(message)) << text;
  EXPECT_EQ(error_of("# a\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x8d \xed\x9f\xbf\xf4\x8f\xbf\xbf\n"), "");
}

TEST(Config, RefusesTextsThatAreNoMap) {
  const auto error = [](const std::string& text) {
    return config_error([&] { parse_config(text, "t"); });
  };
  for (const char* empty : {"", "\n", "# nothing\n", "---\n", "\xEF\xBB\xBF"}) {
    EXPECT_EQ(error(empty), "t: empty configuration") << empty;
  }
  EXPECT_EQ(error("[a, b]\n"), "t:1:1: expected keys and values, 'key: value'");
  EXPECT_EQ(error("a text\n"), "t:1:1: expected keys and values, 'key: value'");
}

TEST(Config, NamesEveryRequiredKeyThatIsNotThere) {
  EXPECT_EQ(config_error([] { parse_config("seed: 1\n", "t"); }),
            "t:1:1: required and not set: 'output_dir', 'data.train', 'data.seq_len', "
            "'train.micro_batch_size', 'train.global_batch_size', 'train.max_steps', 'optim.lr'");
}

TEST(Config, AppliesOverridesInOrder) {
  const RunConfig config =
      parse_config(kMinimal, "t",
                   {"seed=1", "optim.lr=5e-4", "seed=2", "optim.betas=[0.8, 0.9]", "device=cpu",
                    "eval.sample_prompt=A = \"b\": c", "model.use_bias=true", "data.train=a b/ç"});
  EXPECT_EQ(config.seed, 2);
  EXPECT_EQ(config.optim.lr, 5e-4);
  EXPECT_EQ(config.optim.betas, (Pair{0.8, 0.9}));
  EXPECT_EQ(config.device, DeviceChoice::kCpu);
  EXPECT_EQ(config.eval.sample_prompt, "A = \"b\": c");
  EXPECT_TRUE(config.model.use_bias);
  EXPECT_EQ(config.data.train, "a b/ç");
}

TEST(Config, ChecksOverridesAsItChecksTheFile) {
  EXPECT_EQ(error_of_override("optim.lrr=1"),
            "--set 'optim.lrr=1': unknown key 'optim.lrr' (did you mean 'optim.lr'?)");
  EXPECT_EQ(error_of_override("optim.learning_rate=1"),
            "--set 'optim.learning_rate=1': unknown key 'optim.learning_rate' (did you mean "
            "'optim.lr'?)");
  EXPECT_EQ(error_of_override("seed"), "--set 'seed': expected section.key=value");
  EXPECT_EQ(error_of_override("optim=1"), "--set 'optim=1': names a section");
  EXPECT_THAT(error_of_override("seed=\"1\""), HasSubstr("seed is '\"1\"', expected an integer"));
  EXPECT_THAT(error_of_override("seed=010"), HasSubstr("leading zeros could mean octal"));
  EXPECT_THAT(error_of_override("seed="), HasSubstr("seed is '', expected an integer"));
  EXPECT_THAT(error_of_override("=1"), HasSubstr("unknown key ''"));
  EXPECT_THAT(error_of_override("init_from=a\tb"), HasSubstr("a tab"));
  EXPECT_THAT(error_of_override("init_from=\xff"), HasSubstr("not UTF-8"));
  EXPECT_THAT(error_of_override("optim.betas=&a [0.9, 0.95]"), HasSubstr("anchors are not"));
  EXPECT_LT(error_of_override("sed=" + std::string(100'000, 'x')).size(), 300U);
  EXPECT_LT(error_of_override(std::string(100'000, 'x') + "=1").size(), 300U);
}

TEST(Config, PrintsWhatItReadsBackUnchanged) {
  RunConfig config = parse_config(kMinimal, "t");
  config.init_from = "a \"quoted\" \\ path\nwith a line, a tab\t, 'ç' and # more";
  config.output_dir = "~";
  config.optim.lr = 0.1 + 0.2;  // needs 17 digits
  config.schedule.min_lr = 5e-324;
  config.seed = 9223372036854775807;
  config.eval.sample_prompt = "null";
  const std::string text = to_yaml(config);
  EXPECT_EQ(parse_config(text, "printed"), config) << text;
  EXPECT_EQ(to_yaml(parse_config(text, "printed")), text);
  for (const auto& option : run_options()) {
    EXPECT_THAT(config_help(), HasSubstr("  " + option.path + "\n"));
  }
  EXPECT_THAT(config_help(),
              HasSubstr("Peak learning rate. (a number from 1e-37 to 1e+37; required)"));
  EXPECT_THAT(config_help(), HasSubstr("one of cosine, cosine_cooldown, constant, wsd"));
}

TEST(Config, HasOneRowForEveryPath) {
  std::set<std::string> paths, words;
  for (const auto& option : run_options()) {
    EXPECT_TRUE(paths.insert(option.path).second) << option.path;
    EXPECT_FALSE(option.meaning.empty()) << option.path;
    for (const auto& alias : option.aliases) {
      EXPECT_TRUE(words.insert(alias).second) << alias << " stands for two keys";
    }
  }
}

/// Files of a kind that must be refused at once, whatever their size asks for.
class HostileFile : public testing::Test {
 protected:
  std::string error_of_file(const std::filesystem::path& path) {
    return config_error([&] { load_config(path); });
  }

  /// Writes `text`, loads it, and checks that it is refused within 100 ms of CPU and 50 MiB.
  std::string bomb(const std::string& text) {
#ifdef __SANITIZE_ADDRESS__
    constexpr double kSlower = 10;
#else
    constexpr double kSlower = 1;
#endif
    const std::filesystem::path path = folder_ / "bomb.yaml";
    std::ofstream(path, std::ios::binary) << text;
    const long before_kib = peak_kib();
    const std::clock_t start = std::clock();
    const std::string error = error_of_file(path);
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    EXPECT_NE(error, "");
    EXPECT_LT(seconds, 0.1 * kSlower) << error;
    EXPECT_LT(peak_kib() - before_kib, 50 * 1024 * kSlower) << error;
    return error;
  }

  static std::string repeat(const std::string& text, int count) {
    std::string repeated;
    for (int i = 0; i < count; ++i) repeated += text;
    return repeated;
  }

  TemporaryFolder folder_;

 private:
  static long peak_kib() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  }
};

TEST_F(HostileFile, IsRefusedWhenItIsNoRegularFile) {
  EXPECT_THAT(error_of_file(folder_ / "missing.yaml"), HasSubstr("missing.yaml"));
  EXPECT_THAT(error_of_file(folder_.path()), HasSubstr(folder_.path().string()));
  EXPECT_THAT(error_of_file("/dev/zero"), HasSubstr("/dev/zero"));
  const std::filesystem::path fifo = folder_ / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(error_of_file(fifo), HasSubstr(fifo.string()));
  std::ofstream(folder_ / "empty.yaml").flush();
  EXPECT_THAT(error_of_file(folder_ / "empty.yaml"), HasSubstr("empty configuration"));
  std::ofstream(folder_ / "good.yaml") << kMinimal;
  EXPECT_EQ(load_config(folder_ / "good.yaml"), parse_config(kMinimal, "t"));
}

TEST_F(HostileFile, IsRefusedWhenItExplodes) {
  std::string laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (char level = '1'; level <= '8'; ++level) {
    const std::string below = std::string("*a") + static_cast<char>(level - 1);
    laughs += std::string("a") + level + ": &a" + level + " [" + below;
    for (int i = 0; i < 8; ++i) laughs += ", " + below;
    laughs += "]\n";
  }
  EXPECT_THAT(bomb(laughs), HasSubstr("bomb.yaml:1:5: anchors are not allowed"));
  EXPECT_THAT(bomb("a: &x [*x]\n"), HasSubstr("anchors are not allowed"));
}

TEST_F(HostileFile, IsRefusedWhenItIsTooDeep) {
  for (const int depth : {16, 400, 500, 100'000}) {
    EXPECT_THAT(bomb("a: " + repeat("[", depth) + repeat("]", depth)),
                testing::AnyOf(HasSubstr("bomb.yaml:1:19: nested deeper than 16 levels"),
                               HasSubstr("does not end within 32 KiB")));
    EXPECT_NE(bomb(repeat("- ", depth) + "x"), "");
    EXPECT_NE(bomb(repeat("? ", depth)), "");
    EXPECT_NE(bomb(repeat("{a: ", depth)), "");
  }
  EXPECT_THAT(bomb("a: " + repeat("[", 15) + repeat("]", 15)), HasSubstr("unknown key 'a'"));
  std::string blocks;
  for (int i = 0; i < 1000; ++i) blocks += std::string(static_cast<std::size_t>(i), ' ') + "a:\n";
  EXPECT_THAT(bomb(blocks), HasSubstr("bomb.yaml:17:17: nested deeper than 16 levels"));
}

TEST_F(HostileFile, IsRefusedWhenItIsTooLarge) {
  std::string keys, flow = "{";
  for (int i = 0; i < 80'000; ++i) {
    keys += fmt::format("k{}: 1\n", i);
    flow += fmt::format("k{}: 1, ", i);
  }
  EXPECT_THAT(bomb(keys), HasSubstr("more than 10000 values"));
  EXPECT_NE(bomb(flow + "}"), "");
  EXPECT_THAT(bomb(repeat("# x\n", 524'288)), HasSubstr("1048576"));  // 2 MiB
  EXPECT_THAT(bomb(std::string(100'000, 'k') + ": 1\n"), testing::SizeIs(testing::Lt(300U)));
}

TEST_F(HostileFile, IsRefusedWhenItMakesTheParserWait) {
  for (const char* piece :
       {"[", "{a: ", "[\n", "&a ", "*a ", "!a ", "[\"\" ", "[,", "\"", "---\n"}) {
    const std::string text(piece);
    EXPECT_NE(bomb(repeat(text, static_cast<int>(kMaxConfigBytes / text.size()))), "") << piece;
  }
}

TEST(Recipe, LoadsPrintsAndReloadsToTheSame) {
  int recipes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(JIBOIA_CONFIGS)) {
    SCOPED_TRACE(entry.path());
    const RunConfig config = load_config(entry.path());
    EXPECT_EQ(parse_config(to_yaml(config), "printed"), config);
    EXPECT_FALSE(config.data.how_to_get.empty());
    EXPECT_EQ(config.output_dir, "runs/" + entry.path().stem().string());
    ++recipes;
  }
  EXPECT_EQ(recipes, 6);
}

RunConfig recipe(const std::string& name) {
  return load_config(std::filesystem::path(JIBOIA_CONFIGS) / (name + ".yaml"));
}

TEST(Recipe, OfMambarimHasItsNotebooksNumbers) {
  const RunConfig config = recipe("mambarim110m");
  const ModelConfig model{.vocab_size = 32000,
                          .hidden_size = 768,
                          .num_hidden_layers = 12,
                          .time_step_rank = 48,
                          .initialisation = Initialisation::kHuggingFace456,
                          .bos_token_id = 1,
                          .eos_token_id = 2,
                          .pad_token_id = 3};
  EXPECT_EQ(config.model, model);
  EXPECT_EQ(config.train.micro_batch_size, 16);
  EXPECT_EQ(config.train.global_batch_size, 32);
  EXPECT_EQ(config.train.max_steps, (3'033'690 + 31) / 32);  // one epoch
  EXPECT_EQ(config.optim.lr, 5e-5);
  EXPECT_EQ(config.optim.betas, (Pair{0.9, 0.999}));
  EXPECT_EQ(config.optim.weight_decay, 0);
  EXPECT_EQ(config.optim.grad_clip, 1);
  EXPECT_EQ(config.schedule, ScheduleConfig{});
  EXPECT_EQ(config.precision, Precision::kBf16);
  EXPECT_EQ(config.seed, 42);
}

TEST(Recipe, OfMambarimsCardDiffersWhereTheCardDoes) {
  RunConfig expected = recipe("mambarim110m");
  expected.output_dir = "runs/mambarim110m-card";
  expected.model.initialisation = Initialisation::kHuggingFace439;
  expected.train.micro_batch_size = 4;
  expected.train.global_batch_size = 4;
  expected.train.max_steps = 758'423;
  EXPECT_EQ(recipe("mambarim110m-card"), expected);
}

TEST(Recipe, OfMamba130mHasItsShape) {
  const RunConfig config = recipe("mamba130m");
  EXPECT_EQ(config.model.num_hidden_layers, 24);
  EXPECT_EQ(config.model.hidden_size, 768);
  EXPECT_EQ(config.model.vocab_size, 32000);
  EXPECT_EQ(config.data.train, recipe("mambarim110m").data.train);
  EXPECT_EQ(config.data.how_to_get, recipe("mambarim110m").data.how_to_get);
}

TEST(Recipe, OfMamba7bHasItsCardsNumbers) {
  const RunConfig config = recipe("mamba7b-rw");
  ModelConfig model = model_defaults(Initialisation::kMambaSsm);
  model.vocab_size = 50432;
  model.hidden_size = 4096;
  model.num_hidden_layers = 64;
  model.time_step_rank = 256;
  EXPECT_EQ(config.model, model);
  EXPECT_EQ(config.train.global_batch_size, 1024);
  EXPECT_EQ(config.train.max_steps, 1'200'000'000'000 / (1024 * 2048));
  EXPECT_EQ(config.train.recompute, Recompute::kBlock);
  EXPECT_EQ(config.optim.lr, 3e-4);
  EXPECT_EQ(config.optim.betas, (Pair{0.9, 0.95}));
  EXPECT_EQ(config.optim.weight_decay, 0.1);
  EXPECT_EQ(config.optim.grad_clip, 1);
  EXPECT_EQ(config.schedule.indexing, ScheduleIndexing::kOpenLm);
  EXPECT_EQ(config.schedule.warmup_steps, 2000);
  EXPECT_EQ(config.schedule.min_lr, 1e-5);
  EXPECT_EQ(config.loss.z_loss, 1e-4);
}

}  // namespace
}  // namespace jiboia
