#!/usr/bin/env bash
# Every rung of the ladder on one text, then the comparison: n-grams, MLP, RNN, LSTM, GRU, GPT, and where there are answers SFT
# and PPO. The text is the demo's small talk, or a file of your own in any layout of docs/data.md.
#   DEMO=runs/demo-caring-20261128-101500 bash recipes/ladder.sh      takes SFT and PPO from a finished demo; else it runs one
#   DATA=ChatbotData.csv bash recipes/ladder.sh      questions with answers: from n-gram to SFT, in runs/ladder-ChatbotData
#   DATA=stories.txt DATA_FLAGS="--document_separator <|endoftext|>" bash recipes/ladder.sh      plain text: from n-gram to GPT
# All models before SFT learn the same text with the same tokenizer: a question on one line, its answer on the next. A rung
# that is finished is not trained again, so after an error the same command goes on.
#   SEED=1 RUN=runs/ladder-1 bash recipes/ladder.sh      other random weights and another order of the text
#   VOCAB=1024 FLAGS="--num_train_epochs 4" DATA=...     a smaller vocabulary, and further flags of the trained rungs
#   CONFIG=mine DATA=...     settings of configs/pretrain/mine_mlp.yaml and so on, and sft/mine.yaml
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 ACCELERATE_USE_CPU=true
SEED=${SEED:-0}
CONFIG=${CONFIG:-ladder}
if [ -n "${DATA:-}" ]; then
  DEMO=
  name=$(basename "$DATA")
  RUN=${RUN:-runs/ladder-${name%%.*}}
  FILES=$RUN/data TEXT=text
  # Unquoted: several flags.
  python -m rlhf ladder_data "$DATA" ${DATA_FLAGS:-} --output "$FILES"
else
  RUN=${RUN:-runs/ladder}
  if [ -z "${DEMO:-}" ]; then
    DEMO=$RUN/demo
    [ -f "$DEMO/ppo/small_talk.json" ] || RUN=$DEMO bash "$(dirname "$0")/demo.sh"
  fi
  FILES=$DEMO/data TEXT=turns
fi
RUNGS=$RUN/rungs

# A line for rlhf.stages, unless the run is finished. One that was cut off starts again: it takes a minute or two.
line() { # FOLDER COMMAND...
  if ! grep -qs '"status": "done"' "$1/run.json"; then
    rm -rf "$1"
    echo "${@:2} --output_dir $1"
  fi
}
stages() {
  local text="--dataset_name $FILES/$TEXT.jsonl --eval_dataset_name $FILES/${TEXT}_heldout.jsonl --tokenizer_name_or_path $RUN/tokenizer"
  local models=$RUNGS answers="--prompts $FILES/heldout.jsonl"
  line "$RUN/tokenizer" tokenizer --config ladder --dataset_name "$FILES/$TEXT.jsonl" --vocab_size "${VOCAB:-3072}"
  for order in 1 2 3 4 5; do
    line "$RUNGS/$order-gram" pretrain --config ladder_ngram "$text" --order "$order"
  done
  for model in mlp rnn gru lstm gpt2; do
    line "$RUNGS/$model" pretrain --config "${CONFIG}_$model" "$text" --seed "$SEED" "${FLAGS:-}"
  done
  if [ -n "${DEMO:-}" ]; then
    models="$RUNGS $DEMO/sft $DEMO/ppo" answers+=" --reward_functions rlhf.recipes.rewards:on_topic"
  elif [ -f "$FILES/sft.jsonl" ]; then
    line "$RUNGS/sft" sft --config "$CONFIG" --dataset_name "$FILES/sft.jsonl" --eval_dataset_name "$FILES/sft_dev.jsonl" --model_name_or_path "$RUNGS/gpt2" --seed "$SEED"
    answers+=" --reward_functions rlhf.recipes.rewards:chrf"
  elif [ ! -f "$FILES/heldout.jsonl" ]; then # texts of one line
    answers=""
  fi
  echo ladder "$models" "$answers" --samples 5 --output "$RUN"
}
stages | python -m rlhf.stages
