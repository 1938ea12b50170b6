#!/bin/bash
# Training on every host of a TPU slice, each with this repository and its virtual environment in ~/zerosearch_jax:
#
#   TPU=my-slice ZONE=us-west4-a launch/tpu_vm.sh --config configs/qwen2_5_3b.py --config.mesh=1,64,1 --config.rl.rows_per_micro=64 --workdir /shared/run
#
# A slice that is taken away loses its current step; the same command on another slice resumes the run.
set -euo pipefail
: "${TPU:?names the slice}" "${ZONE:?is where it is}"
run="cd zerosearch_jax && exec .venv/bin/python -m launch.train --coordinator=auto$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$run"
