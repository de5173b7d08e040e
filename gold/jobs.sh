# Sourced by loop.sh: `run STAGE OPTIONS` logs the line, runs the stage and passes signals on to it. Needs PYTHON, RUN, LAUNCH.
#
# bash heeds no signal while a command in the foreground works. So a stage is a job in the background (set -m: with a process group of
# its own), and what comes to this shell is passed on to all of that group. A job that does not end by it is killed within a second;
# SIGTERM may take longer, since generate.py and label.py end their chunk first. A second signal kills. tee hears the last words.
server= # of gold/serve.sh
end() { # the signal's name; the shell dies of it too (130, 143, 129): a loop around this script must not go on
  set +e
  trap 'kill -KILL %1' HUP INT QUIT TERM
  for signal in "$1" TERM KILL; do
    kill -s "$signal" %1
    for _ in {1..5}; do if [[ -n $(jobs -r) ]]; then sleep 0.1; fi; done
    if [[ $1 == TERM ]]; then break; fi
  done 2> /dev/null
  if [[ -n $(jobs -r) ]]; then echo "SIGTERM: waits for the stage above; Ctrl-C ends it at once" >&2; fi
  while [[ -n $(jobs -r) ]]; do wait -f %1; done
  if [[ -n $server ]]; then end_server; fi # a death by SIGTERM or SIGHUP runs no trap on EXIT
  trap - "$1"
  kill -s "$1" $$
}
for name in HUP INT QUIT TERM; do trap "end $name" "$name"; done

job_ends() { set +m; wait -f %1; } # after: set -m; COMMAND < /dev/null &

run() {
  echo "+ $*"
  set -m
  "${LAUNCH[@]}" "$PYTHON" "$@" < /dev/null 2>&1 | (trap '' HUP INT QUIT TERM; exec tee -a "$RUN/loop.log") &
  job_ends
}
