#!/bin/bash
# Training on a TPU slice of a GKE cluster, by XPK (pip install xpk), in an image with this repository installed:
#
#   CLUSTER=my-cluster TYPE=v5litepod-64 IMAGE=REGISTRY/zerosearch_jax NAME=my-run STORAGE=my-bucket launch/gke.sh \
#       --config configs/qwen2_5_3b.py --config.mesh=1,64,1 --config.rl.rows_per_micro=64 --workdir /shared/my-run
#
# STORAGE is one that `xpk storage attach` made; it must be mounted where --workdir is. A preempted pod has five minutes
# to save after its current step, and is started again.
set -euo pipefail
: "${CLUSTER:?names the cluster}" "${TYPE:?is the kind of slice}" "${IMAGE:?is the image}" "${NAME:?names the run}"
: "${STORAGE:?is where the run is written}"
run="exec python -m launch.train --coordinator=auto$(printf ' %q' "$@")"
exec xpk workload create --cluster="$CLUSTER" --workload="$NAME" --tpu-type="$TYPE" --docker-image="$IMAGE" \
  --storage="$STORAGE" --max-restarts=10 --termination-grace-period-seconds=300 --command="$run"
