#!/usr/bin/env bash
# The same stages on a laptop, with real text: a small model that writes English, over night without a GPU.
#   bash runs/laptop.sh [--dry-run] [--base-dir DIR]
# Own text instead: python -m nanochat.dataset --import PATH..., and leave the first statement out.
set -euo pipefail
cd "$(dirname "$0")/.."
source dev/setup.sh
source dev/recipe.sh
nanochat_recipe_flags "$@"
nanochat_check_base_dir d6
[ -n "$DRY_RUN" ] || nanochat_setup

python -m nanochat.report reset

# text and tokenizer
python -m nanochat.dataset -n 2
python -m scripts.tok_train --max_chars=100000000 --vocab_size=16384
python -m scripts.tok_eval

# base: predict text
python -m scripts.base_train --depth=6 --max_seq_len=512 --device_batch_size=16 --total_batch_size=16384 --num_iterations=3000
python -m scripts.base_loss --eval_tokens=1048576
python -m scripts.base_eval

# mid: conversations and tools
python -m scripts.mid_train --tasks SmolTalk:20000 GSM8K SpellingBee:2000
python -m scripts.chat_eval -i mid -a ARC-Easy GSM8K SpellingBee

# sft: answer as the assistant
python -m scripts.chat_sft --tasks SmolTalk:5000 ARC-Easy GSM8K SpellingBee:2000
python -m scripts.chat_eval -i sft -a ARC-Easy GSM8K SpellingBee

# rl: practise counting letters, which a model of this size can learn
python -m scripts.chat_rl --task SpellingBee
python -m scripts.chat_eval -i rl -a SpellingBee

# talk
python -m scripts.chat_cli -p "Why is the sky blue?"

python -m nanochat.report generate
nanochat_say_how_to_chat
