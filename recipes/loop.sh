#!/usr/bin/env bash
# The loop of RLHF inside the app: chat, rank, reward model, PPO, blind comparison. Two cores, about four minutes after the demo.
#   RUN=runs/demo-caring-... bash recipes/loop.sh      uses the SFT model and the data of a demo; without RUN the newest one
#   RANKINGS=40 EPISODES=512 COMPARISONS=20 bash recipes/loop.sh      a short one, to see that it runs
# A scripted annotator ranks and compares through the endpoints of the running app, as people do in its tabs (docs/feedback.md).
set -euo pipefail
RUN=${RUN:-$(ls -dt runs/demo*/ 2>/dev/null | head -1 || true)}
RUN=${RUN%/}
SFT=${SFT:-$RUN/sft}
LOOP=${LOOP:-$RUN/loop-$(date +%Y%m%d-%H%M%S)}
[ -f "$SFT/config.json" ] || { echo "loop: no SFT model in '$SFT': run make demo first, or set RUN" >&2; exit 2; }
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc 2>/dev/null || sysctl -n hw.ncpu)} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export ACCELERATE_USE_CPU=true

# serve RUN...: start the app on a free port, and set URL once it answers. stop_app ends it.
serve() {
    PORT=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    URL=http://127.0.0.1:$PORT
    python -m rlhf chat "$@" --feedback "$LOOP/feedback" --device cpu --precision fp32 --port "$PORT" &
    APP=$!
    for _ in $(seq 240); do
        python -c "import urllib.request as u; u.urlopen('$URL/health', timeout=2)" 2>/dev/null && return
        kill -0 "$APP" 2>/dev/null || { echo "loop: the app ended before it answered" >&2; exit 1; }
        sleep 0.5
    done
    echo "loop: the app did not answer within two minutes" >&2
    exit 1
}
stop_app() { [ -z "${APP:-}" ] || { kill "$APP" 2>/dev/null || true; wait "$APP" 2>/dev/null || true; }; APP=; }
trap stop_app EXIT

serve "$SFT"
python -m rlhf annotator rank "$URL" --prompts "$RUN/data/prompts.jsonl" --count "${RANKINGS:-300}" --answers 4
stop_app
python -m rlhf validate "$LOOP/feedback"
python -m rlhf.stages <<STAGES
reward --config demo --dataset_name "$LOOP/feedback" --model_name_or_path "$SFT" --output_dir "$LOOP/reward" --eval_fraction 0.1 --per_device_train_batch_size 8 --num_train_epochs 4 --learning_rate 5.0e-4
ppo --config demo --dataset_name "$RUN/data/prompts.jsonl" --model_name_or_path "$SFT" --reward_model_path "$LOOP/reward" --output_dir "$LOOP/ppo" --total_episodes "${EPISODES:-5120}"
STAGES
serve "$LOOP/ppo" "$SFT"
python -m rlhf annotator compare "$URL" --prompts "$RUN/data/heldout.jsonl" --count "${COMPARISONS:-200}" --temperature 0.7
