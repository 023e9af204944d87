#!/usr/bin/env bash
# From nothing to a chat: a model of your own, trained on the built-in corpus, no GPU and no data needed.
#   bash quickstart.sh [--fresh] [--dry-run] [--base-dir DIR]
# Lesson: lessons/00_setting_up
set -euo pipefail
cd "$(dirname "$0")"
source dev/setup.sh
source dev/recipe.sh
nanochat_recipe_flags "$@"
nanochat_check_base_dir d4
[ -n "$DRY_RUN" ] || nanochat_setup

python -m nanochat.report reset

# text and tokenizer
python -m nanochat.tinyworld --megabytes=6
python -m scripts.tok_train --data=tinyworld --vocab_size=4096
python -m scripts.tok_eval --data=tinyworld

# base: predict text
python -m scripts.base_train --data=tinyworld --depth=4 --max_seq_len=256 --device_batch_size=16 --total_batch_size=4096 --num_iterations=300 --eval_every=150
python -m scripts.base_loss --eval_tokens=131072
python -m scripts.base_eval
python -m scripts.chat_eval -i base -a TinyFacts

# mid: conversations and tools
python -m scripts.mid_train --tasks TinyFacts TinyChat TinyMath:5000 SpellingBee --device_batch_size=16 --num_iterations=280
python -m scripts.chat_eval -i mid -a TinyFacts TinyMath SpellingBee

# sft: answer as the assistant
python -m scripts.chat_sft --tasks TinyFacts TinyChat TinyMath:5000 SpellingBee --device_batch_size=16 --num_iterations=100 --init_lr_frac=0.1
python -m scripts.chat_eval -i sft -a TinyFacts TinyMath SpellingBee

# rl: practise arithmetic
python -m scripts.chat_rl --task TinyMath --examples_per_step=32 --num_samples=8 --num_iterations=20 --max_tokens=48 --eval_problems=200 --eval_samples=4
python -m scripts.chat_eval -i rl -a TinyFacts TinyMath SpellingBee

# talk
python -m scripts.chat_cli -p "Who are you?"
python -m scripts.chat_cli -p "What is the capital of France?"
python -m scripts.chat_cli -p "What is 137 * 46?"
python -m scripts.chat_cli -p "How many r are in strawberry?"
python -m scripts.chat_cli -p "What is the opposite of hot?"

python -m nanochat.report generate
nanochat_say_how_to_chat
