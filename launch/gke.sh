#!/usr/bin/env bash
# GKE with xpk (github.com/AI-Hypercomputer/xpk), TPU slices of many hosts:
#
#   CLUSTER=pods PROJECT=mine ZONE=us-west4-a TYPE=v5litepod-16 NAME=vit-1 \
#   IMAGE=us-docker.pkg.dev/mine/images/advadapters bash launch/gke.sh \
#       train --config=configs/imagenet_vit_b16.py --workdir=/bucket/runs/imagenet
#
# Builds and pushes the image (see Dockerfile), then starts the workload. Beforehand, once:
# the cluster (`xpk cluster create`) and the bucket at /bucket, which all hosts share:
#
#   xpk storage attach bucket --cluster=pods --project=mine --zone=us-west4-a \
#       --type=gcsfuse --bucket=my-bucket --size=1 --readonly=false \
#       --mount-point=/bucket --auto-mount=true
set -euo pipefail
: "${CLUSTER:?}" "${PROJECT:?}" "${ZONE:?}" "${TYPE:?}" "${NAME:?}" "${IMAGE:?}"
cd "$(dirname "$0")/.."

tag="$IMAGE:$(git rev-parse --short HEAD)"
docker build --file=launch/Dockerfile --build-arg=EXTRA=tpu --tag="$tag" .
docker push "$tag"

# run.sh restarts what fails on its host; --max-restarts is for hosts that are lost.
xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --workload="$NAME" --tpu-type="$TYPE" --num-slices="${SLICES:-1}" \
  --max-restarts=10 --docker-image="$tag" \
  --command="JAX_COMPILATION_CACHE_DIR=/bucket/xla bash launch/run.sh advadapters $(printf '%q ' "$@")"
