#!/usr/bin/env bash
# Runs a command on this machine over emulated CPU devices, in one process or several: see usage below.
set -euo pipefail

usage() {
  cat <<'TEXT'
Runs a command on this machine over emulated CPU devices, in one process or in several that find each other.

    launch/local.sh --devices 8 -- python -m lmtiny.train --config configs/tiny.py
    launch/local.sh --processes 2 --devices 4 -- python -m lmtiny.train --config configs/tiny.py

  --devices N     emulated CPU devices in each process (default 1)
  --processes P   processes (default 1); each line of output begins with its process, [0], [1], ...
  -h, --help      show this text

Each process is told of the others in LMTINY_COORDINATOR (localhost:PORT), LMTINY_NUM_PROCESSES and LMTINY_PROCESS_ID.
When one fails, the others are stopped, and its exit code is that of this script. Ctrl-C, SIGTERM and SIGHUP go to all of
them. When this script is killed, they are stopped as well: by SIGTERM, and after half a minute by SIGKILL.
TEXT
}

refuse() {
  echo "launch/local.sh: error: $1" >&2
  exit 1
}

positive() { # FLAG VALUE
  [[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || refuse "$1 needs a whole number above 0, not '$2'"
}

devices=1 processes=1
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --devices=* | --processes=*) flag=${1%%=*} value=${1#*=}; shift; set -- "$flag" "$value" "$@" ;;
    --devices) positive "$1" "${2-}"; devices=$2; shift 2 ;;
    --processes) positive "$1" "${2-}"; processes=$2; shift 2 ;;
    --) shift; break ;;
    *) refuse "there is no flag '$1'; --devices N and --processes P are known, and the command stands after --" ;;
  esac
done
[ $# -gt 0 ] || refuse "no command: put it after --, as in launch/local.sh --devices 8 -- python -m lmtiny.train --config configs/tiny.py"

export JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1
export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
if [ "$processes" -eq 1 ]; then
  exec "$@"
fi

free_port() {
  local port
  for _ in {1..50}; do
    port=$((20000 + RANDOM % 10000))
    if ! (: <"/dev/tcp/localhost/$port") 2>/dev/null; then # nobody listens
      echo "$port"
      return
    fi
  done
  refuse "found no free port"
}

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then # wait -n -p
  refuse "--processes needs bash 5.1 or newer, this is $BASH_VERSION"
fi
port=$(free_port)
export LMTINY_COORDINATOR=localhost:$port LMTINY_NUM_PROCESSES=$processes
set -m # each process gets a process group of its own, which is signalled as a whole, and does not ignore Ctrl-C
# Stops the processes when this script is gone, however: it alone holds the other end of the pipe that is read here.
coproc guard {
  trap '' INT TERM HUP
  groups=()
  while read -r -a line; do groups=("${line[@]}"); done
  [ ${#groups[@]} -gt 0 ] || exit 0
  kill -s TERM -- "${groups[@]/#/-}" 2>/dev/null || true
  for _ in {1..30}; do
    kill -s 0 -- "${groups[@]/#/-}" 2>/dev/null || exit 0 # all of them are gone
    sleep 1
  done
  kill -s KILL -- "${groups[@]/#/-}" 2>/dev/null || true
}
guard_group=${guard_PID:?} # bash sets it
disown "$guard_group" # none of the processes that are waited for

declare -A running=() # process group -> number of the process
tell_guard() {
  echo "${!running[@]}" >&"${guard[1]}"
}
for ((i = 0; i < processes; i++)); do
  {
    trap : INT TERM HUP # this shell and sed outlive the signals, so that the last words are still shown
    # A terminal that is gone ends sed, and must not end who still has to save; a reader that is gone may (`| head`).
    LMTINY_PROCESS_ID=$i "$@" 2>&1 | (trap '' INT TERM HUP; sed -u "s/^/[$i] /" || { [ $? -lt 128 ] && exec cat >/dev/null; })
  } &
  running[$!]=$i
  tell_guard
done

signal_all() { # SIGNAL
  local group
  for group in "${!running[@]}"; do
    kill -s "$1" -- "-$group" 2>/dev/null || true
  done
}
signalled=
trap 'signalled=yes; signal_all INT' INT
trap 'signalled=yes; signal_all TERM' TERM
trap 'signalled=yes; signal_all HUP' HUP
trap 'signal_all KILL; kill -s KILL -- "-$guard_group" 2>/dev/null || true' EXIT

code=0 killer=
while [ ${#running[@]} -gt 0 ]; do
  ended=0 group=
  wait -n -p group || ended=$?
  who=${running[${group:-none}]-}
  if [ -z "$who" ]; then # a signal came, or the killer below has done its work
    if [ "$ended" -eq 127 ]; then break; fi
    continue
  fi
  unset "running[$group]"
  tell_guard
  if [ "$ended" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$ended
    if [ ${#running[@]} -gt 0 ] && [ -z "$signalled" ]; then
      echo "launch/local.sh: error: process $who ended with exit code $code; the others are stopped" >&2
      signal_all TERM
      # One that waits for the lost one in a collective never gets to answer.
      (sleep 10; signal_all KILL) &
      killer=$!
      disown "$killer" # else bash would tell of its end
    fi
  fi
done
if [ -n "$killer" ]; then kill -- "-$killer" 2>/dev/null || true; fi
exit "$code"
