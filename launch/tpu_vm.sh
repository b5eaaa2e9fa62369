#!/usr/bin/env bash
# Creates a Cloud TPU VM, puts this working tree on it and runs commands on all its workers: see usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Creates a Cloud TPU VM with lmtiny on it, runs commands on all its workers, shows it, deletes it. Needs gcloud, logged in.

    launch/tpu_vm.sh create --name tiny --type v5e-8 --zone us-west4-a --project my-project --spot
    launch/tpu_vm.sh run    --name tiny --zone us-west4-a --project my-project -- python -m lmtiny.train --config configs/tiny.py
    launch/tpu_vm.sh status --name tiny --zone us-west4-a --project my-project
    launch/tpu_vm.sh delete --name tiny --zone us-west4-a --project my-project

  create           creates the VM, copies the last commit to ~/lmtiny of every worker, installs it there
  copy             copies and installs again, after a new commit
  run -- COMMAND   runs COMMAND in ~/lmtiny on every worker, each word arriving as it was typed
  status           shows the VM
  delete           deletes the VM and all that is on it, without asking

  --name NAME        of the TPU VM
  --zone ZONE        of the TPU VM
  --project PROJECT  of Google Cloud
  --type TYPE        create: the accelerator, v5e-8 (gcloud's v5litepod-8), v5p-32, v6e-8, v4-8, ...: as plan names them
  --version VERSION  create: the TPU software (default: the one for JAX on this TYPE)
  --spot             create: cheaper, and may be taken back at any moment
  --dry-run          prints the gcloud lines, runs nothing
  -h, --help         show this text

A VM costs money until it is deleted. A run's folder lies on the workers' own disks: copy it before `delete`, or give a
--workdir on storage that outlives them.
TEXT
}

refuse() {
  echo "launch/tpu_vm.sh: error: $1" >&2
  exit 1
}

# Prints the words so that any shell reads them back as they are.
quoted() {
  local word text=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      text+=" $word"
    else
      text+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s' "${text# }"
}

call() {
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

name='' zone='' project='' type='' version='' spot='' dry_run='' command=() dashes=''
case ${1-} in
  -h | --help) usage; exit 0 ;;
  create | copy | run | status | delete) action=$1; shift ;;
  '') refuse "say what to do: create, copy, run, status or delete; --help shows examples" ;;
  *) refuse "there is no '$1'; create, copy, run, status and delete are known" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --spot) spot=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    --name=* | --zone=* | --project=* | --type=* | --version=*) flag=${1%%=*} value=${1#*=}; shift; set -- "$flag" "$value" "$@" ;;
    --name | --zone | --project | --type | --version)
      if [ -z "${2-}" ] || [[ $2 = -* ]]; then refuse "$1 needs a value"; fi
      printf -v "${1#--}" '%s' "$2"
      shift 2
      ;;
    --) dashes=yes; shift; command=("$@"); break ;;
    *) refuse "there is no flag '$1'; --help lists them" ;;
  esac
done

[ -n "$name" ] || refuse "$action needs --name NAME"
[ -n "$zone" ] || refuse "$action needs --zone ZONE"
[ -n "$project" ] || refuse "$action needs --project PROJECT"
if [ "$action" = create ]; then
  [ -n "$type" ] || refuse "create needs --type TYPE, for example v5e-8"
elif [ -n "$type$version$spot" ]; then
  refuse "--type, --version and --spot belong to create, not to $action"
fi
if [ "$action" = run ]; then
  [ ${#command[@]} -gt 0 ] || refuse "run needs a command after --"
elif [ -n "$dashes" ]; then
  refuse "$action takes no command"
fi
[ -n "$dry_run" ] || command -v gcloud >/dev/null || refuse "gcloud is not installed: https://cloud.google.com/sdk/docs/install"

tpu=(gcloud compute tpus tpu-vm)
where=("--zone=$zone" "--project=$project")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

on_all_workers() { # SHELL TEXT
  call "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command="$1"
}

copy_and_install() {
  local archive=lmtiny.tar.gz
  if [ -z "$dry_run" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    archive=$folder/$archive
    [ -z "$(git -C "$root" status --porcelain)" ] || echo "launch/tpu_vm.sh: warning: uncommitted changes are not copied" >&2
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD || refuse "$root has no commit to copy"
  fi
  call "${tpu[@]}" scp "$archive" "$name:lmtiny.tar.gz" "${where[@]}" --worker=all
  # The TPU software of today brings Python 3.10, lmtiny needs 3.11: uv fetches one. --seed puts pip into the environment.
  on_all_workers "set -e; mkdir -p lmtiny; tar -xzf lmtiny.tar.gz -C lmtiny; cd lmtiny; \
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv; \
test -x .venv/bin/python || python3 -m uv venv -q --seed --python 3.12 .venv; .venv/bin/pip install -q -e '.[tpu]'"
}

case $action in
  create)
    known=''
    while read -r chip accelerator software _; do
      if [[ $chip = '#' ]]; then continue; fi
      if [[ $type = "$chip"-* || $type = "$accelerator"-* ]]; then
        type=$accelerator-${type#*-} version=${version:-$software}
      fi
      known+=", $chip-N"
    done <"$root/lmtiny/planning/slices.txt"
    [ -n "$version" ] || refuse "the TPU software for '$type' is not known here, but for ${known#, }: give --version VERSION"
    call "${tpu[@]}" create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}
    copy_and_install
    ;;
  copy) copy_and_install ;;
  run) on_all_workers "cd lmtiny && LMTINY_COORDINATOR=auto PATH=\"\$PWD/.venv/bin:\$PATH\" $(quoted "${command[@]}")" ;;
  status) call "${tpu[@]}" describe "$name" "${where[@]}" ;;
  delete) call "${tpu[@]}" delete "$name" "${where[@]}" --quiet ;;
esac
