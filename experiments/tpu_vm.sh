#!/usr/bin/env bash
# Runs one command on every worker of a TPU VM slice; the same line again goes on where it stopped.
#
#   experiments/tpu_vm.sh NAME ZONE python experiments/cifar100.py --flagfile=... --workdir=/mnt/disk/runs/cifar100_10
#
# Copies this checkout's last commit to each worker, makes an environment there when requirements have changed, and adds
# --distributed=auto. The first worker keeps the files: let --workdir be on a disk that outlives a preempted machine.
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: $0 NAME ZONE COMMAND..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."

tpu() { # VERB ARGUMENTS...
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$@" --zone="$zone" --worker=all
}

package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
git archive --output="$package/abd_jax.tar.gz" HEAD
tpu scp "$package/abd_jax.tar.gz" "$name:"

# The stamp is written last: an environment half made is made again.
tpu ssh "$name" --command='set -e
mkdir -p ~/abd_jax && tar -xzf ~/abd_jax.tar.gz -C ~/abd_jax && cd ~/abd_jax
wanted=$(cat pyproject.toml requirements-tpu.txt | sha256sum)
if [ "$wanted" != "$(cat ~/abd_jax_venv/stamp 2>/dev/null)" ]; then
  command -v python3.11 >/dev/null || sudo apt-get install -y python3.11-venv
  python3.11 -m venv ~/abd_jax_venv
  ~/abd_jax_venv/bin/python -m pip install -r requirements-tpu.txt
  echo "$wanted" > ~/abd_jax_venv/stamp
fi'

tpu ssh "$name" --command="cd ~/abd_jax && . ~/abd_jax_venv/bin/activate && exec $(printf '%q ' "$@")--distributed=auto"
