#!/usr/bin/env bash
# Cloud TPU slice of one or many hosts, as a queued resource; from your own machine, in tmux:
#
#   NAME=vit ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=my-bucket bash launch/tpu_pod.sh \
#       train --config=configs/imagenet_vit_b16.py --workdir=bucket/runs/imagenet
#
# Asks for the slice (MORE=--spot makes it cheaper), copies the last commit to all hosts,
# mounts the bucket at advadapters/bucket, and runs the command on all hosts at once, see
# run.sh. A slice that is taken away is asked for again, and the run goes on. In the end
# it is still there, and yours to give back:
#
#   gcloud compute tpus queued-resources delete vit --zone=us-west4-a --force
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${BUCKET:?}"
cd "$(dirname "$0")/.."

queued() { gcloud compute tpus queued-resources "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
state() { queued describe --format='value(state.state)' 2>/dev/null || true; }
on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

# What each host does before the command; twice does no harm.
set_up="set -e
mkdir -p advadapters && tar -xzf advadapters.tgz -C advadapters && cd advadapters
if ! command -v gcsfuse; then
  from=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  echo \"deb [signed-by=\$key] \$from gcsfuse-\$(lsb_release -cs) main\" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list
  curl -s \$from/doc/apt-key.gpg | sudo tee \$key >/dev/null
  sudo apt-get update -q && sudo apt-get install -qy gcsfuse
fi
mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs '$BUCKET' bucket; }
curl -LsSf https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --allow-existing --python=3.12 .venv
~/.local/bin/uv pip install --editable '.[tpu]'"
run="JAX_COMPILATION_CACHE_DIR=\$PWD/bucket/xla bash launch/run.sh .venv/bin/advadapters $(printf '%q ' "$@")"

archive=$(mktemp -d)/advadapters.tgz
git archive --format=tar.gz --output="$archive" HEAD

while true; do
  now=$(state)
  echo "$NAME: ${now:-not there}"
  case $now in
    ACTIVE)
      code=0
      gcloud compute tpus tpu-vm scp "$archive" "$NAME:" --zone="$ZONE" --worker=all &&
        on_all_hosts "$set_up" && on_all_hosts "cd advadapters && $run" || code=$?
      [[ $(state) == ACTIVE ]] && exit "$code"
      ;;
    FAILED | SUSPENDED) queued delete --force --quiet ;;
    "")
      # shellcheck disable=SC2086 # MORE may be several words
      queued create --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" ${MORE:-}
      ;;
    *) sleep 30 ;;
  esac
done
