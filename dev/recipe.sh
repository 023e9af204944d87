# Sourced by the recipes: their flags, and statements that are printed before they run, or with --dry-run only printed.
# The statements of a recipe stay plain: `python -m ...` and `torchrun ...` are functions that print and call.

DRY_RUN="${DRY_RUN:-}"
FRESH=""

nanochat_recipe_flags() {
    while [ $# -gt 0 ]; do
        case "$1" in
        --dry-run | --dry_run) DRY_RUN=1 ;;
        --fresh) FRESH=1 ;;
        --base-dir | --base_dir)
            [ $# -gt 1 ] || nanochat_fail "$1 needs a folder"
            export NANOCHAT_BASE_DIR="$2"
            shift
            ;;
        --base-dir=* | --base_dir=*) export NANOCHAT_BASE_DIR="${1#*=}" ;;
        -h | --help)
            echo "usage: bash $0 [--fresh] [--dry-run] [--base-dir DIR]"
            echo "  --fresh         forget an earlier run's tokenizer, checkpoints and report, and begin anew"
            echo "  --dry-run       print every statement, run none"
            echo "  --base-dir DIR  where everything is written (default: \$NANOCHAT_BASE_DIR, else ~/.cache/nanochat)"
            exit 0
            ;;
        *) nanochat_fail "unknown flag $1; allowed are --fresh, --dry-run and --base-dir DIR" ;;
        esac
        shift
    done
    BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}"
}

nanochat_statement() {
    local word line=""
    for word in "$@"; do
        case "$word" in
        *[!A-Za-z0-9_./:,=@%+-]* | "") line="$line '${word//\'/\'\\\'\'}'" ;;
        *) line="$line $word" ;;
        esac
    done
    printf '\n$%s\n' "$line"
    [ -n "$DRY_RUN" ] || command "$@"
}

python() { nanochat_statement python "$@"; }
torchrun() { nanochat_statement torchrun "$@"; }

# Refuses to touch a base directory that holds what is not ours, or another run's checkpoints: one directory has one
# tokenizer, and a second run would replace it under the first one's models. $1: the tag of this recipe's models
nanochat_check_base_dir() {
    local entry name
    for entry in "$BASE_DIR"/* "$BASE_DIR"/.[!.]*; do
        [ -e "$entry" ] || continue
        name="$(basename "$entry")"
        case "$name" in
        data | tokenizer | checkpoints | report | hub | core | peers) ;;
        *) [ -z "$FRESH" ] || nanochat_fail "--fresh: $BASE_DIR holds '$name', which nanochat did not write; name a folder of its own with --base-dir DIR" ;;
        esac
    done
    for entry in "$BASE_DIR"/checkpoints/*/*; do
        [ -d "$entry" ] || continue
        name="$(basename "$entry")"
        [ "$name" = "$1" ] || nanochat_fail "$BASE_DIR holds models of another run ($name), whose tokenizer this run would replace; name another folder with --base-dir DIR"
    done
    if [ -n "$FRESH" ]; then
        echo "fresh: removing tokenizer, checkpoints, report and the built-in corpus in $BASE_DIR"
        [ -n "$DRY_RUN" ] || rm -rf "$BASE_DIR/tokenizer" "$BASE_DIR/checkpoints" "$BASE_DIR/report" "$BASE_DIR/data/tinyworld"
    fi
}

# The commands to chat, each line to be pasted.
nanochat_say_how_to_chat() {
    echo
    echo "Chat with it, in the terminal or in the browser:"
    echo
    echo "    source .venv/bin/activate"
    if [ "$BASE_DIR" != "$HOME/.cache/nanochat" ]; then
        echo "    export NANOCHAT_BASE_DIR=$(printf '%q' "$(cd "$BASE_DIR" 2>/dev/null && pwd || echo "$BASE_DIR")")"
    fi
    echo "    python -m scripts.chat_cli"
    echo "    python -m scripts.chat_web"
}
