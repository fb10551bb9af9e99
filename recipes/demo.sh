#!/usr/bin/env bash
# Every stage of the demo, one line each, in order. Two cores, about five minutes. The same as `rlhf demo`.
#   VOICE=witty bash recipes/demo.sh      prefers another voice: plain, friendly, witty, caring, enthusiastic
# The settings of a stage are in configs/<stage>/demo.yaml next to this file; the flags here say which files it reads and writes.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
VOICE=${VOICE:-caring}
RUN=${RUN:-runs/demo-$VOICE-$(date +%Y%m%d-%H%M%S)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
launch() { accelerate launch --quiet --config_file "$HERE/accelerate/one_process.yaml" -m rlhf "$1" --config demo "${@:2}"; }

python -m rlhf smalltalk --voice "$VOICE" --output "$RUN/data"
launch tokenizer --dataset_name "$RUN/data/text.txt" --output_dir "$RUN/tokenizer"
launch pretrain --dataset_name "$RUN/data/text.txt" --tokenizer_name_or_path "$RUN/tokenizer" --output_dir "$RUN/base"
launch sft --dataset_name "$RUN/data/sft.jsonl" --eval_dataset_name "$RUN/data/heldout.jsonl" --model_name_or_path "$RUN/base" --output_dir "$RUN/sft"
launch reward --dataset_name "$RUN/data/rankings.jsonl" --model_name_or_path "$RUN/sft" --output_dir "$RUN/reward"
launch ppo --dataset_name "$RUN/data/prompts.jsonl" --model_name_or_path "$RUN/sft" --reward_model_path "$RUN/reward" --output_dir "$RUN/ppo"
python -m rlhf report "$RUN/base" "$RUN/sft" "$RUN/ppo" --prompts "$RUN/data/heldout.jsonl" --reward_model "$RUN/reward" \
    --reward_functions rlhf.recipes.rewards:on_topic rlhf.recipes.rewards:preferred_voice --reward_weights 1 0 0 --temperature 0.5 --greedy --limit 512
