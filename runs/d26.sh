#!/usr/bin/env bash
# A chat model of 1.1 billion parameters on one node of eight H100: half a day at 45 % of their peak.
#   bash runs/d26.sh [--dry-run] [--base-dir DIR]      GPUS=4 for fewer, WANDB_RUN=name sends the curves to wandb
# Memory, time and cost before it starts: the base_train statement with --dry_run.
set -euo pipefail
cd "$(dirname "$0")/.."
source dev/setup.sh
source dev/recipe.sh
nanochat_recipe_flags "$@"
nanochat_check_base_dir d26
[ -n "$DRY_RUN" ] || nanochat_setup

WANDB_RUN="${WANDB_RUN:-dummy}"
GPUS="${GPUS:-8}"

python -m nanochat.report reset

# text: eight shards (2 billion characters, of which the tokenizer takes 1.9, so that a repetition takes the same) at
# once, the rest while it trains
python -m nanochat.dataset -n 8
# 20 tokens per parameter, 4.8 characters per token, 250 million characters per shard; base_train prints the sum
python -m nanochat.dataset -n 430 &
DATASET_PID=$!
python -m scripts.tok_train --max_chars=1900000000 --vocab_size=65536
python -m scripts.tok_eval
wait "$DATASET_PID"

# base: predict text
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.base_train --depth=26 --max_seq_len=2048 --device_batch_size=16 --weight_decay=auto --run="$WANDB_RUN" --save_every=1000 --keep_last=2 --resume
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.base_loss --device_batch_size=16
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.base_eval

# mid: conversations and tools
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.mid_train --device_batch_size=16 --tasks SmolTalk MMLU GSM8K SpellingBee --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_eval -i mid -a ARC-Easy ARC-Challenge MMLU GSM8K SpellingBee

# sft: answer as the assistant
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_sft --device_batch_size=16 --tasks ARC-Easy ARC-Challenge GSM8K SmolTalk:10000 SpellingBee:2000 --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_eval -i sft -a ARC-Easy ARC-Challenge MMLU GSM8K SpellingBee

# rl: practise word problems
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_rl --task GSM8K --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_eval -i rl -a GSM8K

python -m nanochat.report generate
nanochat_say_how_to_chat
