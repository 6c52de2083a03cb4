#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.tensor: conv2d on an activation that is sharded over rows or columns.
#
# Expected: an error, or a result that is right on every rank (halo rows fetched, or the input gathered first).
# Seen:     no error.  Each rank convolves only the rows (or columns) it holds, and the result is a DTensor marked
#           Replicate() whose shape says 8x8 while the tensor that every rank holds has half of the rows (columns);
#           full_tensor() gives that half.  Two ranks, gloo, CPU.
#
# Why it matters here: a VAE's decoder over several devices must not take DTensor for its convolutions.
# The script fails if this changes.  Needs Python 3.10 or newer; downloads torch once.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.2.6

cat > "$folder/probe.py" <<'PYTHON'
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
image, weight = torch.randn(1, 2, 8, 8), torch.randn(3, 2, 3, 3)
whole = F.conv2d(image, weight, padding=1)
kernel = distribute_tensor(weight, mesh, [Replicate()])
for dim, name in ((2, "rows"), (3, "columns")):
    result = F.conv2d(distribute_tensor(image, mesh, [Shard(dim)]), kernel, padding=1)
    line = (
        f"sharded over {name}: shape {tuple(result.shape)}, placements {result.placements}, "
        f"to_local {tuple(result.to_local().shape)}, full_tensor {tuple(result.full_tensor().shape)}, "
        f"conv2d of the whole input {tuple(whole.shape)}"
    )
    if dist.get_rank() == 0:
        print(line, flush=True)
dist.destroy_process_group()
PYTHON

seen="$(OMP_NUM_THREADS=1 "$folder/venv/bin/python" -m torch.distributed.run --nproc-per-node 2 "$folder/probe.py" 2>/dev/null)"
expected="sharded over rows: shape (1, 3, 8, 8), placements (Replicate(),), to_local (1, 3, 4, 8), full_tensor (1, 3, 4, 8), conv2d of the whole input (1, 3, 8, 8)
sharded over columns: shape (1, 3, 8, 8), placements (Replicate(),), to_local (1, 3, 8, 4), full_tensor (1, 3, 8, 4), conv2d of the whole input (1, 3, 8, 8)"
echo "$seen"
if [ "$seen" != "$expected" ]; then
  echo "changed: no longer as seen with torch 2.13.0" >&2
  exit 1
fi
echo "as seen with torch 2.13.0"
