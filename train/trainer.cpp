#include "train/trainer.h"

#include <cmath>
#include <utility>

#include "core/log.h"
#include "data/verified_files.h"
#include "train/model/hf_config.h"
#include "train/model/initialise.h"
#include "train/token_tensors.h"
#include "train/tools/version.h"

namespace jiboia {
namespace {

TokenDataset open_dataset(const RunConfig& config, const std::string& folder, const char* key,
                          Verification verification) {
  TokenDataset data = TokenDataset::open(
      folder, {.seq_len = config.data.seq_len,
               .vocab_size = config.model.vocab_size,
               .document_starts = config.data.reset_at_document_starts ? DocumentStarts::kRead
                                                                       : DocumentStarts::kIgnore,
               .verify = {.cache_folder = user_cache_folder(), .verification = verification}});
  log::info("{}: {}", key, data.summary());
  return data;
}

}  // namespace

void require_data(const RunConfig& config) {
  const std::pair<const char*, const std::string&> folders[] = {
      {"data.train", config.data.train}, {"data.validation", config.data.validation}};
  for (const auto& [key, folder] : folders) {
    if (folder.empty() || std::filesystem::exists(folder)) continue;
    fail(ErrorKind::kData, "{} is {}, which does not exist (from {}).{}{}", key, folder,
         std::filesystem::current_path().string(),
         config.data.how_to_get.empty() ? "" : " To get the data:\n", config.data.how_to_get);
  }
}

RunData open_data(const RunConfig& config, Verification verification) {
  RunData data{.train = open_dataset(config, config.data.train, "data.train", verification)};
  require(data.train.rows() >= config.train.global_batch_size, ErrorKind::kData,
          "data.train has {} rows, fewer than one step's train.global_batch_size of {}",
          data.train.rows(), config.train.global_batch_size);
  if (!config.data.validation.empty()) {
    data.validation = open_dataset(config, config.data.validation, "data.validation", verification);
    if (data.validation->manifest().fingerprint() == data.train.manifest().fingerprint()) {
      log::warning("data.validation holds the same tokens as data.train");
    }
  }
  data.tokenizer_files = read_tokenizer_files(config.data.train);
  const auto tokenizer = std::filesystem::path(config.data.train) / "tokenizer.json";
  if (config.eval.sample_tokens > 0 && std::filesystem::exists(tokenizer)) {
    data.tokenizer = Tokenizer::load(tokenizer);
  }
  return data;
}

Trainer::Trainer(const RunConfig& config, const MambaLm& model, const MemoryPlan& plan,
                 RunFolder& folder, RunData& data, Exec& exec, StartTimes& times)
    : config_(config),
      folder_(folder),
      data_(data),
      exec_(exec),
      start_times_(times),
      model_(model),
      plan_(plan),
      parameters_(exec, model_.parameters(), Dtype::kF32, StoreContents::kValuesAndTraining,
                  activations_for(exec, config.precision)),
      workspace_(exec, plan_.arena_bytes),
      optimizer_(config.optim, parameters_),
      training_step_(config, model_, parameters_, optimizer_, workspace_.arena()),
      uploader_(exec, config.train.micro_batch_size, config.data.seq_len),
      reports_{StepReport(exec, micro_batches()), StepReport(exec, micro_batches()),
               StepReport(exec, micro_batches())},
      checkpoints_(folder, config.checkpoint),
      progress_(config.log.every) {}

void Trainer::start(DataChange data_change) {
  wait(exec_);
  start_times_.end("memory");
  log::info("{} parameters, {} in all, on {}\n{}", parameters_.parameter_count(),
            byte_text(plan_.total_bytes()), describe(exec_), optimizer_.describe());

  const RunInputs inputs = make_run_inputs(config_, data_.train.manifest().fingerprint());
  if (auto resumed = checkpoints_.resume(inputs, data_change, parameters_)) {
    state_ = resumed->state;
    require(
        resumed->has_moments || state_.step >= config_.train.max_steps, ErrorKind::kCheckpoint,
        "'{}' holds weights alone (checkpoint.contents), so no run can go on from it; a new one "
        "can start with them, by init_from and with another output_dir",
        resumed->folder.string());
    log::info("resumed from {} at step {}", resumed->folder.string(), state_.step);
  } else {
    if (config_.init_from.empty()) {
      initialise(parameters_, static_cast<std::uint64_t>(config_.seed),
                 static_cast<int>(config_.threads));
      log::info("no checkpoint in {}: starts at step 0 with weights drawn from seed {}",
                folder_.checkpoints().string(), config_.seed);
    } else {
      load_first_weights();
      log::info("no checkpoint in {}: starts at step 0 with the weights of {}",
                folder_.checkpoints().string(), config_.init_from);
    }
  }
  state_.inputs = inputs;
  folder_.warn_if_space_is_short(
      CheckpointStore::bytes(parameters_.parameter_count(), config_.checkpoint.contents),
      checkpoints_.more_at_once(saves_to_come()));
  prepare_samples();
  metrics_.emplace(folder_.path() / "metrics.jsonl", state_.step);
  loader_.emplace(data_.train,
                  TokenLoader::Options{.order = RowOrder::kShuffled,
                                       .seed = static_cast<std::uint64_t>(config_.seed),
                                       .rows_per_batch = config_.train.micro_batch_size,
                                       .first_position = state_.next_row});
  start_times_.end("weights");
}

void Trainer::load_first_weights() {
  const std::filesystem::path path = config_.init_from;
  if (!std::filesystem::is_directory(path)) {
    load_model_weights(path, parameters_, ExtraTensors::kWarn);
    return;
  }
  const std::filesystem::path folder = find_model(path);
  const double epsilon = read_while_there(folder, [&] {
    load_model_weights(folder, parameters_, ExtraTensors::kWarn);
    return std::filesystem::exists(folder / "config.json")
               ? read_model_config(folder).layer_norm_epsilon
               : config_.model.layer_norm_epsilon;
  });
  if (epsilon != config_.model.layer_norm_epsilon) {
    log::warning("init_from: {} was made with layer_norm_epsilon {}, this run has {}",
                 folder.string(), epsilon, config_.model.layer_norm_epsilon);
  }
}

RunEnd Trainer::run() {
  StopSignal stop;
  if (state_.step >= config_.train.max_steps) {
    log::info("{} is finished: step {} of {}", folder_.path().string(), state_.step,
              config_.train.max_steps);
    return {.step = state_.step};
  }
  write_file_atomically(folder_.path() / "resolved_config.yaml", to_yaml(config_));
  write_file_atomically(folder_.path() / "version.txt", version_text("train"));
  const auto due = [&](std::int64_t every) { return every > 0 && state_.step % every == 0; };
  // A GPU is given the next step before the numbers of this one are read.
  const std::size_t ahead = is_cuda(exec_) ? kStepsAhead : 0;
  while (state_.step < config_.train.max_steps && !stop.received()) {
    launch_step();
    const bool last = state_.step == config_.train.max_steps;
    const bool validates =
        data_.validation && (due(config_.eval.every) || (last && config_.eval.every > 0));
    const bool saves = due(config_.checkpoint.every) || last;
    if (!validates && !saves) {
      finish_steps(ahead);
      continue;
    }
    finish_steps(1);
    nlohmann::ordered_json line = finish_step();
    if (validates) {
      try {
        validate(line);
      } catch (const Error& error) {
        metrics_->append(line);
        fail(error.kind(), "step {}: {}; the checkpoints are as they were", state_.step,
             error.what());
      }
    }
    metrics_->append(line);
    if (saves) save();
    if (validates && generator_) say_sample(stop);
    last_end_ = nullptr;  // the time of these is no step's
  }
  finish_steps(0);
  if (state_.step < config_.train.max_steps) save();
  if (checkpoints_.has_superseded()) require_working_weights();
  checkpoints_.remove_superseded();
  return {.step = state_.step,
          .signal = state_.step < config_.train.max_steps ? stop.received() : 0};
}

void Trainer::launch_step() {
  Step step{
      .number = state_.step + 1,
      .tokens = state_.tokens + tokens_per_step(),
      .lr = learning_rate(config_.schedule, config_.optim.lr, state_.step, config_.train.max_steps),
      .report = &reports_[static_cast<std::size_t>(state_.step) % reports_.size()]};
  // The report of the step before those under way is still read, for its end.
  require(under_way_.size() + 1 < reports_.size(), ErrorKind::kInternal,
          "{} steps are under way, more than there are reports for", under_way_.size());
  // Steps that follow each other are measured from end to end, the exec's idle time among them.
  if (!last_end_) begin_.record(exec_);
  step.begin = last_end_ ? last_end_ : &begin_;
  last_end_ = &step.report->end_mark();
  const std::size_t measured_before = op_timer_ ? op_timer_->pending() : 0;
  for (std::int64_t i = 0; i < micro_batches(); ++i) {
    const TokenBatch batch = loader_->next().value();
    if (i == 0) step.epoch = batch.epoch;
    step.data_wait_s += batch.wait_s;
    const TrainingStep::Losses losses = training_step_.micro_step(uploader_.upload(batch), i);
    step.report->add(i, losses.loss, losses.lse_squared);
  }
  step.report->end(training_step_.update(step.lr, step.number));
  step.measured_ops = op_timer_ ? op_timer_->pending() - measured_before : 0;
  under_way_.push_back(step);
  state_.step = step.number;
  state_.next_row += config_.train.global_batch_size;
  state_.tokens = step.tokens;
}

nlohmann::ordered_json Trainer::finish_step() {
  const Step step = under_way_.front();
  under_way_.pop_front();
  step.report->wait();
  if (!std::exchange(has_finished_step_, true)) say_how_the_start_went();
  if (op_timer_) op_timer_->collect(step.measured_ops);
  require(std::isfinite(step.report->loss()), ErrorKind::kNumerics,
          "step {}: the loss is {}; the checkpoints are as they were. If the newest has diverged "
          "already, remove it to go on from the one before",
          step.number, step.report->loss());
  if (!std::isfinite(step.report->gradient_norm())) {
    optimizer_.fail_on_gradient(step.number, step.report->first_not_finite());
  }
  // While older checkpoints go, the exec runs out of steps: the time of that is no step's either.
  if (checkpoints_.remove_superseded()) last_end_ = nullptr;
  const double step_s = step.report->end_mark().seconds_since(*step.begin);
  steps_s_ += step_s;
  show(step, step_s);
  return metrics_of(step, step_s);
}

void Trainer::finish_steps(std::size_t left) {
  while (under_way_.size() > left) metrics_->append(finish_step());
}

void Trainer::measure_ops() { training_step_.measure_ops(op_timer_.emplace()); }

std::string Trainer::profile() const { return to_text(op_timer_.value(), steps_s_); }

nlohmann::ordered_json Trainer::metrics_of(const Step& step, double step_s) const {
  const double tokens_per_second = static_cast<double>(tokens_per_step()) / step_s;
  nlohmann::ordered_json line = {
      {"step", step.number},
      {"train/loss", step.report->loss()},
      {"train/z_loss", config_.loss.z_loss * step.report->lse_squared()},
      {"train/grad_norm", step.report->gradient_norm() / static_cast<double>(micro_batches())},
      {"train/lr", step.lr},
      {"train/tokens", step.tokens},
      {"train/epoch", step.epoch},
      {"perf/tokens_per_second", tokens_per_second},
      {"perf/step_s", step_s},
      {"perf/data_wait_s", step.data_wait_s},
      {"mem/max_allocated_gib", static_cast<double>(allocated_bytes()) / (1 << 30)}};
  if (const double share = share_of_peak(tokens_per_second)) line["perf/mfu"] = share;
  return line;
}

std::int64_t Trainer::allocated_bytes() const {
  // A CPU gives memory when it is touched: what it holds in the end is what was planned.
  const std::int64_t on_gpu = gpu_bytes(exec_);
  return on_gpu ? on_gpu : plan_.total_bytes();
}

double Trainer::share_of_peak(double tokens_per_second) const {
  const double peak = peak_flops(exec_, parameters_.activations());
  return peak > 0 ? 3 * forward_flops_per_token(config_.model) * tokens_per_second / peak : 0;
}

void Trainer::show(const Step& step, double step_s) {
  mean_step_s_ = mean_step_s_ == 0 ? step_s : 0.9 * mean_step_s_ + 0.1 * step_s;
  const double tokens_per_second = static_cast<double>(tokens_per_step()) / mean_step_s_;
  progress_.show(
      {.step = step.number,
       .max_steps = config_.train.max_steps,
       .loss = step.report->loss(),
       .lr = step.lr,
       .grad_norm = step.report->gradient_norm() / static_cast<double>(micro_batches()),
       .tokens_per_second = tokens_per_second,
       .share_of_peak = share_of_peak(tokens_per_second),
       .memory = is_cuda(exec_) ? byte_text(allocated_bytes()) : "",
       .eta_s = mean_step_s_ * static_cast<double>(config_.train.max_steps - step.number)});
}

void Trainer::say_how_the_start_went() {
  start_times_.end("first step");
  progress_.say(fmt::format("first step finished {:.2f} s after the program's start: {}",
                            start_times_.total_s(), start_times_.text()));
}

void Trainer::validate(nlohmann::ordered_json& line) {
  const Evaluation result = evaluate(
      model_, parameters_, *data_.validation,
      {.rows_per_batch = config_.train.micro_batch_size, .max_rows = config_.eval.max_rows},
      uploader_, workspace_.arena());
  line["eval/loss"] = result.loss;
  line["eval/ppl"] = result.perplexity();
  if (result.bits_per_byte) line["eval/bits_per_byte"] = *result.bits_per_byte;
  progress_.say(fmt::format(
      "step {}: validation loss {:.4f}, perplexity {:.2f}{}{}", state_.step, result.loss,
      result.perplexity(),
      result.bits_per_byte ? fmt::format(", {:.4f} bits per byte", *result.bits_per_byte) : "",
      result.rows < data_.validation->rows()
          ? fmt::format(" (the first {} of {} rows)", result.rows, data_.validation->rows())
          : ""));
}

void Trainer::prepare_samples() {
  if (!data_.tokenizer) return;
  sample_prompt_ = data_.tokenizer->encode(config_.eval.sample_prompt, true);
  for (std::int32_t token : sample_prompt_) {
    if (token < config_.model.vocab_size) continue;
    log::warning("no samples: eval.sample_prompt has token {}, the model knows {}", token,
                 config_.model.vocab_size);
    sample_prompt_.clear();
    return;
  }
  if (!sample_prompt_.empty()) {
    generator_.emplace(model_, parameters_, workspace_.arena());
  }
}

void Trainer::say_sample(const StopSignal& stop) {
  std::vector<std::int32_t> tokens = sample_prompt_;
  const SamplingOptions sampling{
      .temperature = 0.8, .top_p = 0.95, .vocab_size = data_.tokenizer->vocab_size()};
  generator_->generate(sample_prompt_, config_.eval.sample_tokens, sampling, std::nullopt,
                       [&](std::int32_t token) {
                         tokens.push_back(token);
                         return !stop.received();
                       });
  // Quoted, so that line breaks in it do not look like the log's.
  const nlohmann::json text = data_.tokenizer->decode(tokens, true);
  progress_.say(fmt::format("sample: {}", text.dump()));
}

std::int64_t Trainer::saves_to_come() const {
  const std::int64_t last = config_.train.max_steps, every = config_.checkpoint.every;
  if (state_.step >= last) return 0;
  return every == 0 ? 1 : ceil_div(last, every) - state_.step / every;
}

void Trainer::require_working_weights() {
  const TokenBatch batch = loader_->next().value();
  Tape tape(exec_, workspace_.arena(), parameters_.values(), nullptr, TapeMode::kEvaluate);
  const LossVars losses = model_.loss(tape, uploader_.upload(batch), 0, Recompute::kNone);
  const double loss = read_scalar(exec_, tape.value(losses.loss));
  require(std::isfinite(loss), ErrorKind::kNumerics,
          "step {}: with the weights after the last update the loss is {}; the checkpoints before "
          "it stay: remove it to go on from the one before",
          state_.step, loss);
}

void Trainer::save() {
  // An update can make the weights useless without making the loss before it look so.
  require(
      optimizer_.values_are_finite(), ErrorKind::kNumerics,
      "step {}: the weights or the moments are not finite any more; they were not saved, earlier "
      "checkpoints are intact",
      state_.step);
  metrics_->sync();
  checkpoints_.save(state_, config_.model, parameters_, data_.tokenizer_files);
}

}  // namespace jiboia
