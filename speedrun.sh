#!/usr/bin/env bash
# The speedrun: a 561 million parameter chat model on one node of eight H100, real text, about four hours.
#   bash speedrun.sh [--dry-run] [--base-dir DIR]      WANDB_RUN=name sends the curves to wandb
set -euo pipefail
cd "$(dirname "$0")"
source dev/setup.sh
source dev/recipe.sh
nanochat_recipe_flags "$@"
nanochat_check_base_dir d20
[ -n "$DRY_RUN" ] || nanochat_setup

WANDB_RUN="${WANDB_RUN:-dummy}"
GPUS="${GPUS:-8}"

python -m nanochat.report reset

# text: eight shards (2 billion characters, of which the tokenizer takes 1.9, so that a repetition takes the same) at
# once, the rest while it trains
python -m nanochat.dataset -n 8
# 20 tokens per parameter are 11.2 billion tokens, 54 billion characters: 216 shards, and some to spare
python -m nanochat.dataset -n 240 &
DATASET_PID=$!
python -m scripts.tok_train --max_chars=1900000000 --vocab_size=65536
python -m scripts.tok_eval
wait "$DATASET_PID"

# base: predict text
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.base_train --depth=20 --max_seq_len=2048 --device_batch_size=32 --total_batch_size=524288 --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.base_loss
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.base_eval

# mid: conversations and tools
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.mid_train --tasks SmolTalk MMLU GSM8K SpellingBee --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_eval -i mid -a ARC-Easy ARC-Challenge MMLU GSM8K SpellingBee

# sft: answer as the assistant
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_sft --tasks ARC-Easy ARC-Challenge GSM8K SmolTalk:10000 SpellingBee:2000 --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_eval -i sft -a ARC-Easy ARC-Challenge MMLU GSM8K SpellingBee

# rl: practise word problems
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_rl --task GSM8K --run="$WANDB_RUN"
torchrun --standalone --nproc_per_node="$GPUS" -m scripts.chat_eval -i rl -a GSM8K

python -m nanochat.report generate
nanochat_say_how_to_chat
