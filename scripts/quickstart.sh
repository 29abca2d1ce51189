#!/usr/bin/env bash
# Trains a small Mamba language model on real Portuguese, from nothing, on a CPU, in minutes.
#
#   scripts/quickstart.sh
#
# Installs what is missing (as root or with a sudo that asks no password, otherwise it prints the
# command and stops), builds the programs, gathers text from distribution packages, trains a
# tokenizer, writes token shards, trains configs/quickstart.yaml, validates, exports a Hugging Face
# folder, prints sampled text and draws the loss curve. Everything lands in runs/quickstart/.
# Interrupt it at any time: started again, it goes on where it was.
#
# Exit codes: 0 done, 2 packages cannot be installed, 3 too little text, 5 the model is not better
# than a bigram, others as the programs'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in
  '') ;;
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/quickstart.sh && exit 0 ;;
  *) echo "unknown argument '$1'; see scripts/quickstart.sh --help" >&2 && exit 2 ;;
esac
. scripts/common.sh

run=runs/quickstart
config=configs/quickstart.yaml
tools=scripts/quickstart
python=$run/venv/bin/python
prompt='O sistema operacional'
mkdir -p "$run"

# step TITLE: ends the step before it with its time and begins another.
step() {
  finish_step
  echo "== $1"
  step_began=$SECONDS
}
finish_step() {
  [ -z "${step_began:-}" ] || echo "   ($((SECONDS - step_began)) s)"
}
# write FILE COMMAND...: the command's output becomes FILE when it succeeds.
write() {
  "${@:2}" >"$1.part"
  mv "$1.part" "$1"
}

# summary.json is there from the very end on, until some of what it tells of is made again.
if [ -e "$run/summary.json" ] && [ -d "$run/hf" ]; then
  echo "The quickstart is done: see $run/ (remove it to start over)."
  cat "$run/sample.txt"
  exit 0
fi
rm -f "$run/summary.json"

step 'Distribution packages'
scripts/install_dependencies.sh build data

step 'Private Python environment'
python_environment "$run/venv" scripts/requirements-data.txt

step 'Programs'
scripts/build.sh

step 'Portuguese text from distribution packages'
if [ ! -e "$run/corpus/corpus.json" ]; then
  "$python" "$tools/gather_corpus.py" --packages "$run/packages" --output "$run/corpus"
fi

step 'Tokenizer'
if [ ! -e "$run/tokenizer/tokenizer_config.json" ]; then
  "$python" "$tools/train_tokenizer.py" "$run/corpus/train.jsonl" --output "$run/tokenizer"
fi

step 'Token shards'
for split in train validation; do
  "$python" scripts/prepare_data.py text "$run/corpus/$split.jsonl" \
    --tokenizer "$run/tokenizer/tokenizer.json" --output "$run/data/$split"
done

step 'Baselines: what counting achieves'
if [ ! -e "$run/baselines.json" ]; then
  seq_len=$(build/bin/train --config "$config" --print-config | awk '$1 == "seq_len:" {print $2}')
  "$python" scripts/baselines.py --data "$run/data" --seq-len "$seq_len" --order 2 --discounts one \
    --output "$run/baselines.json"
fi

step "Training $config"
build/bin/train --config "$config"
checkpoints=("$run"/checkpoints/step_????????)
checkpoint=${checkpoints[-1]}

step "Validation of $checkpoint"
write "$run/evaluation.json" \
  build/bin/evaluate --model "$checkpoint" --data "$run/data/validation" --json

step "Export to $run/hf"
rm -rf "$run/hf" "$run/hf.part"
build/bin/export --checkpoint "$checkpoint" --output "$run/hf.part" | sed "s|$run/hf\.part|$run/hf|"
mv "$run/hf.part" "$run/hf"

step 'A sample'
write "$run/sample.txt" \
  build/bin/generate --model "$run/hf" --prompt "$prompt" --max-new-tokens 120 --seed 1
cat "$run/sample.txt"

step 'Summary'
"$python" "$tools/summarize.py" "$run" --output "$run/summary.json.part"
"$python" "$tools/model_card.py" --summary "$run/summary.json.part" --prompt "$prompt" \
  --output "$run/hf/README.md"
mv "$run/summary.json.part" "$run/summary.json"
finish_step

cat <<END

Done in $SECONDS s. In $run/:
  hf/            the model; transformers opens it with from_pretrained("$run/hf")
  loss.png       the loss curve        summary.json   all figures
  checkpoints/   to go on training     metrics.jsonl  every step

Next:
  build/bin/generate --model $run/hf --prompt 'Para instalar um pacote' --max-new-tokens 100
  build/bin/train --config $config --set output_dir=runs/quickstart-2 --set optim.lr=1e-3
  README.md says how your own text gets in, and which recipes are there.
END
