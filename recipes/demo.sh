#!/usr/bin/env bash
# The index of the house: every stage of the demo, one line each, in order. Two cores, five to six minutes.
#   VOICE=witty bash recipes/demo.sh      prefers another voice: plain, friendly, witty, caring, enthusiastic
set -euo pipefail
cd "$(dirname "$0")/.."
VOICE=${VOICE:-caring}
RUN=${RUN:-runs/demo-$VOICE-$(date +%Y%m%d-%H%M%S)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
launch() { accelerate launch --quiet --config_file recipes/accelerate/one_process.yaml "recipes/$1.py" --config "recipes/configs/$1/demo.yaml" "${@:2}"; }

python recipes/smalltalk.py --voice "$VOICE" --output "$RUN/data"
launch tokenizer --dataset_name "$RUN/data/text.txt" --output_dir "$RUN/tokenizer"
launch pretrain --dataset_name "$RUN/data/text.txt" --tokenizer_name_or_path "$RUN/tokenizer" --output_dir "$RUN/base"
launch sft --dataset_name "$RUN/data/sft.jsonl" --eval_dataset_name "$RUN/data/heldout.jsonl" --model_name_or_path "$RUN/base" --output_dir "$RUN/sft"
launch reward --dataset_name "$RUN/data/rankings.jsonl" --model_name_or_path "$RUN/sft" --output_dir "$RUN/reward"
launch ppo --dataset_name "$RUN/data/prompts.jsonl" --model_name_or_path "$RUN/sft" --reward_model_path "$RUN/reward" --output_dir "$RUN/ppo"
python -m rlhf report "$RUN/base" "$RUN/sft" "$RUN/ppo" --prompts "$RUN/data/heldout.jsonl" --reward_model "$RUN/reward" \
    --reward_functions recipes.rewards:on_topic recipes.rewards:preferred_voice --reward_weights 1 0 0 --temperature 0.5 --greedy --limit 512
