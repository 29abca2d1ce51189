#include "train/config/config.h"

namespace jiboia {
namespace {

/// A model's option as one of the run's.
Option<RunConfig> under_model(const Option<ModelConfig>& option) {
  return {.path = "model." + option.path,
          .field = [field = option.field](RunConfig& config) { return field(config.model); },
          .presence = option.presence,
          .range = option.range,
          .meaning = option.meaning,
          .aliases = option.aliases};
}

std::vector<Option<RunConfig>> make_run_options() {
  constexpr double kManySteps = 1e12;
#define FIELD(member) JIBOIA_FIELD(RunConfig, member)
  std::vector<Option<RunConfig>> options = {
      {FIELD(output_dir), .presence = Presence::kRequired,
       .meaning = "Folder of the run: checkpoints, metrics, the resolved configuration.",
       .aliases = {"out_dir", "save_dir", "logs"}},
      {FIELD(seed), .range = at_least(0),
       .meaning = "Decides the initial weights and the order of the rows.",
       .aliases = {"data_seed", "random_seed"}},
      {FIELD(device), .meaning = "Where to train; auto: on a GPU when there is one."},
      {FIELD(threads), .range = between(0, 4096),
       .meaning = "CPU threads; 0: all cores. Results do not depend on it.",
       .aliases = {"num_threads", "workers"}},
      {FIELD(precision),
       .meaning = "What the GPU computes in; weights, moments and sums stay fp32.",
       .aliases = {"bf16", "dtype", "torch_dtype", "mixed_precision", "mixed_precision_param"}},
      {FIELD(init_from),
       .meaning = "Model folder or safetensors file to take the first weights from; empty: none.",
       .aliases = {"pretrained", "model_name_or_path"}},
  };
  for (const Option<ModelConfig>& option : model_options()) {
    options.push_back(under_model(option));
  }
  const std::vector<Option<RunConfig>> rest = {
      {FIELD(data.train), .presence = Presence::kRequired,
       .meaning = "Folder of the token shards to train on.",
       .aliases = {"train_data", "data_path"}},
      {FIELD(data.validation), .meaning = "Folder of the token shards to validate on; empty: none.",
       .aliases = {"val", "valid", "val_data", "eval_data"}},
      {FIELD(data.seq_len), .presence = Presence::kRequired, .range = between(2, 1 << 24),
       .meaning = "Tokens of a row.",
       .aliases = {"block_size", "sequence_len", "sequence_length", "seq_length",
                   "max_context_length", "max_seq_len", "context_length"}},
      {FIELD(data.reset_at_document_starts),
       .meaning = "Whether the model's state starts anew at every document of a row."},
      {FIELD(data.how_to_get),
       .meaning = "Commands that fetch and convert the data, told when a folder is not there."},

      {FIELD(train.micro_batch_size), .presence = Presence::kRequired, .range = between(1, 1 << 20),
       .meaning = "Rows computed at once.",
       .aliases = {"per_device_train_batch_size", "batch_size",
                   "num_tokens_per_microbatch_per_dp_rank"}},
      {FIELD(train.global_batch_size), .presence = Presence::kRequired,
       .range = between(1, 1 << 30),
       .meaning = "Rows of a step: a multiple of train.micro_batch_size.",
       .aliases = {"gradient_accumulation_steps", "accum_freq", "num_tokens_per_train_step"}},
      {FIELD(train.max_steps), .presence = Presence::kRequired, .range = between(1, kManySteps),
       .meaning = "Steps (updates) of the whole run.",
       .aliases = {"steps", "train_iters", "num_train_epochs", "epochs", "train_num_samples",
                   "max_iters"}},
      {FIELD(train.recompute),
       .meaning = "What backward computes again instead of keeping it in memory: nothing, what is "
                  "cheap (normed inputs, convolutions, step sizes), or whole blocks.",
       .aliases = {"gradient_checkpointing", "grad_checkpointing", "activation_checkpoint"}},
      {FIELD(train.cuda_graphs),
       .meaning = "Whether a GPU is given each step as recorded graphs (auto), which changes no "
                  "bit, or launch by launch (never).",
       .aliases = {"use_cuda_graph", "cudagraphs", "enable_cuda_graph"}},

      {FIELD(optim.lr), .presence = Presence::kRequired, .range = between(kFp32Min, kFp32Max),
       .meaning = "Peak learning rate.", .aliases = {"learning_rate", "max_lr", "base_lr"}},
      {FIELD(optim.betas), .range = {.min = 0, .max = 1, .open = Range::Open::kMax},
       .meaning = "AdamW's decay of the first and of the second moment.",
       .aliases = {"adam_beta1", "adam_beta2", "beta1", "beta2"}},
      {FIELD(optim.eps), .range = between(kFp32Min, 1),
       .meaning = "Added to the root of AdamW's second moment.",
       .aliases = {"adam_epsilon", "epsilon", "adam_eps"}},
      {FIELD(optim.weight_decay), .range = between(0, kFp32Max),
       .meaning = "AdamW's decoupled weight decay.", .aliases = {"wd"}},
      {FIELD(optim.grad_clip), .range = between(0, kFp32Max),
       .meaning = "Largest global L2 norm of the gradient; 0: any.",
       .aliases = {"max_grad_norm", "grad_clip_norm", "clip_grad", "max_norm"}},
      {FIELD(optim.weight_decay_scope),
       .meaning = "What decays: all parameters, or (default) all but A_log, D, biases and norms."},

      {FIELD(schedule.name), .meaning = "Learning rate after the warmup.",
       .aliases = {"lr_scheduler_type", "lr_scheduler", "lr_decay_style"}},
      {FIELD(schedule.indexing),
       .meaning = "Whether warmup step k (from 0) has lr * k / W (huggingface) or "
                  "lr * (k + 1) / W (open_lm)."},
      {FIELD(schedule.warmup_steps), .range = between(0, kManySteps),
       .meaning = "Steps from 0 to the peak.",
       .aliases = {"warmup", "lr_warmup_iters", "warmup_iters", "warmup_ratio"}},
      {FIELD(schedule.min_lr), .range = at_least(0),
       .meaning = "Learning rate at the end of cosine, cosine_cooldown and wsd.",
       .aliases = {"lr_cooldown_end", "cosine_min_lr_ratio", "lr_scheduler_kwargs", "lr_min"}},
      {FIELD(schedule.cooldown_steps), .range = between(0, kManySteps),
       .meaning = "Last steps, in which cosine_cooldown and wsd go down.",
       .aliases = {"cooldown", "decay_steps", "lr_wsd_decay_iters"}},

      {FIELD(loss.z_loss), .range = between(0, kFp32Max),
       .meaning = "Weight of the mean squared logsumexp of the logits.",
       .aliases = {"z_loss_coefficient", "z_loss_weight"}},

      {FIELD(checkpoint.every), .range = between(0, kManySteps),
       .meaning = "Steps between checkpoints; 0: only the last step's.",
       .aliases = {"save_steps", "save_frequency", "save_interval", "interval"}},
      {FIELD(checkpoint.keep), .range = between(0, kManySteps),
       .meaning = "Newest checkpoints that are kept; 0: all.",
       .aliases = {"save_total_limit", "keep_latest_k"}},
      {FIELD(checkpoint.contents),
       .meaning = "all, or weights alone: a third of the size, but no run can go on from them.",
       .aliases = {"save_only_model"}},

      {FIELD(eval.every), .range = between(0, kManySteps),
       .meaning = "Steps between validations; 0: never.",
       .aliases = {"eval_steps", "eval_interval", "val_frequency"}},
      {FIELD(eval.max_rows), .range = between(0, kManySteps),
       .meaning = "Rows of a validation; 0: all.", .aliases = {"eval_iters", "max_eval_samples"}},
      {FIELD(eval.sample_prompt), .meaning = "Text that each validation's sample goes on from."},
      {FIELD(eval.sample_tokens), .range = between(0, 1 << 20),
       .meaning = "Tokens of each validation's sample; 0: none."},

      {FIELD(log.every), .range = between(1, kManySteps),
       .meaning = "Steps between progress lines; metrics.jsonl has every step.",
       .aliases = {"logging_steps", "log_freq", "log_every_n_steps", "log_interval"}},
  };
#undef FIELD
  options.insert(options.end(), rest.begin(), rest.end());
  return options;
}

}  // namespace

std::span<const Option<RunConfig>> run_options() {
  static const std::vector<Option<RunConfig>> kOptions = make_run_options();
  return kOptions;
}

}  // namespace jiboia
