#!/usr/bin/env bash
# Ray Data 2.60.0: what is lost when one picture of a batch raises and errors are tolerated (max_errored_blocks=-1).
#
# Expected: the batch that was handed to the function (4 rows), or the one row that map() was called with.
# Seen:     the whole block that the rows were read in.  20 rows in one block: nothing comes back, with map_batches of
#           4 rows and with map of single rows alike, and take_all() ends without an error; in five blocks of 4 rows: 16.
#
# Why it matters here: a dataset encoder must catch errors for each picture itself.
# The script fails if this changes.  Needs Python 3.10 to 3.13; one local Ray node, one processor.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check "ray[data]==2.60.0"

cat > "$folder/probe.py" <<'PYTHON'
import ray

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
context = ray.data.DataContext.get_current()
context.max_errored_blocks = -1
context.enable_progress_bars = False


def refuse_batch(batch):
    if 13 in batch["id"]:
        raise ValueError("a picture that cannot be read")
    return batch


def refuse_row(row):
    if row["id"] == 13:
        raise ValueError("a picture that cannot be read")
    return row


def rows_of(dataset):
    return len(dataset.take_all())


print("map_batches of 4, one block:", rows_of(ray.data.range(20, override_num_blocks=1).map_batches(refuse_batch, batch_size=4)))
print("map_batches of 4, five blocks:", rows_of(ray.data.range(20, override_num_blocks=5).map_batches(refuse_batch, batch_size=4)))
print("map, one block:", rows_of(ray.data.range(20, override_num_blocks=1).map(refuse_row)))
PYTHON

seen="$(RAY_USAGE_STATS_ENABLED=0 timeout 300 "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null | grep '^map')"
expected="map_batches of 4, one block: 0
map_batches of 4, five blocks: 16
map, one block: 0"
echo "$seen"
if [ "$seen" != "$expected" ]; then
  echo "changed: no longer as seen with Ray 2.60.0" >&2
  exit 1
fi
echo "as seen with Ray 2.60.0"
