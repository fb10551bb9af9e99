#!/usr/bin/env bash
# Every stage of the demo, one line each, in order. Two cores, a few minutes. The same as `rlhf demo`.
#   VOICE=witty bash recipes/demo.sh      prefers another voice: plain, friendly, witty, caring, enthusiastic
# The settings of a stage are in configs/<stage>/demo.yaml next to this file; the flags here say which files it reads and writes.
# Each line is a command: `rlhf sft ...`. One process starts them all, so that the libraries are imported once. The weights are those
# of `accelerate launch` with one process, bit for bit.
set -euo pipefail
VOICE=${VOICE:-caring}
RUN=${RUN:-runs/demo-$VOICE-$(date +%Y%m%d-%H%M%S)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 ACCELERATE_USE_CPU=true
python -m rlhf.stages <<STAGES
smalltalk --voice "$VOICE" --output "$RUN/data"
tokenizer --config demo --dataset_name "$RUN/data/text.txt" --chat_template_path "$RUN/data/chat_template.jinja" --output_dir "$RUN/tokenizer"
pretrain --config demo --dataset_name "$RUN/data/text.txt" --tokenizer_name_or_path "$RUN/tokenizer" --output_dir "$RUN/base"
sft --config demo --dataset_name "$RUN/data/sft.jsonl" --eval_dataset_name "$RUN/data/sft_dev.jsonl" --model_name_or_path "$RUN/base" --output_dir "$RUN/sft"
reward --config demo --dataset_name "$RUN/data/rankings.jsonl" --model_name_or_path "$RUN/sft" --output_dir "$RUN/reward"
ppo --config demo --dataset_name "$RUN/data/prompts.jsonl" --model_name_or_path "$RUN/sft" --reward_model_path "$RUN/reward" --output_dir "$RUN/ppo"
report "$RUN/base" "$RUN/sft" "$RUN/ppo" --prompts "$RUN/data/heldout.jsonl" --reward_model "$RUN/reward" --reward_functions rlhf.recipes.rewards:on_topic rlhf.recipes.rewards:preferred_voice --reward_weights 1 0 0 --temperature 0.5 --greedy --limit 512
examples "$RUN/sft" "$RUN/ppo" --data "$RUN/data"
STAGES
