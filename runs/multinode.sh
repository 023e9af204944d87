#!/usr/bin/env bash
# The same base_train on several machines: start this on every one of them, with the same words.
#   NODES=2 HEAD=node1:29500 bash runs/multinode.sh --depth=26 --device_batch_size=16
# NODES: how many machines. HEAD: name and free port of one of them, where all meet. RUN_ID: any word that is the run's.
# GPUS: processes on this machine (unset: its GPUs, or one). RESTARTS: how often the run starts again when a rank dies.
# LOCAL_ADDR: this machine's address as the others see it, where its name does not say.
# All of them need one base directory (NANOCHAT_BASE_DIR) that they share: the first rank writes checkpoints, all read.
# Tokenizer and text must be there before: python -m nanochat.dataset -n 450 and python -m scripts.tok_train on one machine.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${NODES:-}" ] || [ -z "${HEAD:-}" ]; then
    echo "error: say how many machines and where they meet: NODES=2 HEAD=node1:29500 bash runs/multinode.sh --depth=26" >&2
    exit 2
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi

# a store of torchrun's that outlives a restart would tell new ranks the addresses of dead ones
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# torchrun knows the machine where all meet by its name only; told an address of it, all would wait for another one
IS_HOST=$("$PYTHON" -c '
import psutil, socket, sys
ours = {one.address for card in psutil.net_if_addrs().values() for one in card}
theirs = {found[4][0] for found in socket.getaddrinfo(sys.argv[1], None)}
print("is_host=1" if any(address in ours and not address.startswith("127.") for address in theirs) else "")
' "${HEAD%:*}")

# --resume begins anew where nothing was saved, so that the first start and every restart are one command
exec "$PYTHON" -m torch.distributed.run \
    --nnodes="$NODES" --nproc_per_node="${GPUS:-gpu}" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$HEAD" --rdzv-id="${RUN_ID:-nanochat}" \
    ${IS_HOST:+--rdzv-conf="$IS_HOST"} ${LOCAL_ADDR:+--local-addr="$LOCAL_ADDR"} \
    -m scripts.base_train --save_every=1000 --keep_last=2 --resume "$@"
