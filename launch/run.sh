#!/usr/bin/env bash
# Runs a command on this host, again after a failure, until it succeeds:
#
#   bash launch/run.sh advadapters train --config=configs/digits.py --workdir=runs/digits
#
# A run that is started again goes on from its last checkpoint. Exit code 2 is bad input,
# which no restart mends. SIGTERM is passed on, so that the command saves, and ends this.
# TRIES=10 and PAUSE=10 (seconds) may be changed in the environment.
set -uo pipefail

terminated=
trap 'terminated=1; kill -TERM "$child" 2>/dev/null' TERM INT

for ((try = 1; try <= ${TRIES:-10}; try++)); do
  "$@" &
  child=$!
  while true; do # a signal ends `wait`, but not the command
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  if [[ $code == 0 || $code == 2 || $terminated ]]; then
    exit "$code"
  fi
  echo "launch/run.sh: exit code $code, try $try of ${TRIES:-10}: ${*:1:3} ..." >&2
  sleep "${PAUSE:-10}"
done
exit "$code"
