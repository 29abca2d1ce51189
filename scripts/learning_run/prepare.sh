#!/usr/bin/env bash
# Makes the data of configs/learning_run.yaml: about 100 MB of English from distribution packages.
#
#   scripts/learning_run/prepare.sh [DIR]
#
# Gathers the text, trains a tokenizer of 16,384 tokens, writes token shards, and computes what xz
# and n-gram models achieve on the held-out text. Everything lands in DIR (runs/learning_run):
# training needs DIR/data alone, 34 MiB, which can be copied to a machine without network. Interrupt
# it at any time: started again, it goes on where it was. It downloads 150 MB and takes about 15
# minutes and, for the n-gram models, 3.4 GiB of memory.
#
# Exit codes: 0 done, 2 packages cannot be installed, 3 too little text, others as the programs'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
case ${1:-} in
  -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/learning_run/prepare.sh && exit 0 ;;
  -*) echo "unknown option '$1'; see scripts/learning_run/prepare.sh --help" >&2 && exit 2 ;;
esac
. scripts/common.sh

run=${1:-runs/learning_run}
tools=scripts/learning_run
python=$run/venv/bin/python
mkdir -p "$run"

scripts/install_dependencies.sh data
python_environment "$run/venv" scripts/requirements-data.txt

echo '== English text from distribution packages'
if [ ! -e "$run/corpus/corpus.json" ]; then
  "$python" "$tools/gather_english.py" --packages "$run/packages" --output "$run/corpus"
fi

echo '== Tokenizer'
if [ ! -e "$run/tokenizer/tokenizer_config.json" ]; then
  "$python" scripts/quickstart/train_tokenizer.py "$run/corpus/train.jsonl" --vocab-size 16384 \
    --output "$run/tokenizer"
fi

echo '== Token shards'
for split in train validation; do
  "$python" scripts/prepare_data.py text "$run/corpus/$split.jsonl" --compression 9 \
    --tokenizer "$run/tokenizer/tokenizer.json" --output "$run/data/$split"
done
du -sh "$run/data"

echo '== Baselines: what counting and xz achieve'
if [ ! -e "$run/baselines.json" ]; then
  "$python" scripts/baselines.py --corpus "$run/corpus" --data "$run/data" --seq-len 2048 \
    --output "$run/baselines.json"
fi
