#!/usr/bin/env bash
# Every rung of the ladder on the demo's small talk, then the comparison: n-grams, MLP, RNN, LSTM, GRU, GPT, SFT and PPO.
#   DEMO=runs/demo-caring-20261128-101500 bash recipes/ladder.sh      takes SFT and PPO from a finished demo; else it runs one
# All models before SFT learn the same text with the same tokenizer: a question on one line, its answer on the next. A rung
# that is finished is not trained again, so after an error the same command goes on.
#   SEED=1 RUN=runs/ladder-1 bash recipes/ladder.sh      other random weights and another order of the text
set -euo pipefail
RUN=${RUN:-runs/ladder}
SEED=${SEED:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 ACCELERATE_USE_CPU=true
if [ -z "${DEMO:-}" ]; then
  DEMO=$RUN/demo
  [ -f "$DEMO/ppo/small_talk.json" ] || RUN=$DEMO bash "$(dirname "$0")/demo.sh"
fi
RUNGS=$RUN/rungs
TEXT="--dataset_name $DEMO/data/turns.jsonl --eval_dataset_name $DEMO/data/turns_heldout.jsonl --tokenizer_name_or_path $RUN/tokenizer"

# A line for rlhf.stages, unless the run is finished. One that was cut off starts again: it takes a minute or two.
line() { # FOLDER COMMAND...
  if ! grep -qs '"status": "done"' "$1/run.json"; then
    rm -rf "$1"
    echo "${@:2} --output_dir $1"
  fi
}
stages() {
  line "$RUN/tokenizer" tokenizer --config ladder --dataset_name "$DEMO/data/turns.jsonl"
  for order in 1 2 3 4 5; do
    line "$RUNGS/$order-gram" pretrain --config ladder_ngram "$TEXT" --order "$order"
  done
  for model in mlp rnn gru lstm gpt2; do
    line "$RUNGS/$model" pretrain --config "ladder_$model" "$TEXT" --seed "$SEED"
  done
  echo ladder "$RUNGS" "$DEMO/sft" "$DEMO/ppo" --prompts "$DEMO/data/heldout.jsonl" --reward_functions rlhf.recipes.rewards:on_topic --output "$RUN"
}
stages | python -m rlhf.stages
