# Sourced by loop.sh with SERVE=1: one `vllm serve` for all iterations, since a large teacher takes minutes to start. It ends with the
# loop, whatever happens: setpriv lets the kernel end it where the loop is killed. Needs PYTHON, RUN, TEACHER; SERVE_ARGS are further
# options of vllm serve.
PORT=${PORT:-8000}
end_server() { # and wait until it is gone: the next start needs its port
  kill "$server" 2> /dev/null || return 0
  for _ in {1..100}; do kill -0 "$server" 2> /dev/null || return 0; sleep 0.1; done
  kill -KILL "$server" 2> /dev/null || true
}
if ((${#LAUNCH[@]})); then refuse "SERVE=1 with LAUNCH: the server would hold what the stages wait for; slurm/serve_teacher.sbatch is a job of its own"; fi
setpriv --pdeathsig TERM true 2> /dev/null || refuse "SERVE=1 needs setpriv --pdeathsig of util-linux: start the server yourself (docs/cluster.md)"
if (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; then refuse "something listens on port $PORT already; give another PORT"; fi
echo "+ vllm serve $TEACHER on port $PORT; log: $RUN/serve.log"
setpriv --pdeathsig TERM "$PYTHON" -m gold.serve "$TEACHER" --port "$PORT" ${SERVE_ARGS:-} > "$RUN/serve.log" 2>&1 < /dev/null &
server=$!
disown "$server" # job %1 is a stage, see gold/jobs.sh
trap end_server EXIT
until (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; do
  kill -0 "$server" 2> /dev/null || refuse "vllm serve has ended: read $RUN/serve.log"
  sleep 0.5
done
export no_proxy="127.0.0.1,${no_proxy:-}" # a proxy of the cluster would be asked for it
for name in GENERATE_ARGS LABEL_ARGS RELABEL_ARGS; do printf -v $name '%s' "${!name} --server-url http://127.0.0.1:$PORT/v1"; done
