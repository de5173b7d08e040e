# Sourced by loop.sh with SERVE=1: one `vllm serve` for all iterations, since a large teacher takes minutes to start. It ends with the
# loop, whatever happens (gold/serve.py). Needs PYTHON, RUN, TEACHER, LAUNCH; SERVE_ARGS are further options of vllm serve.
PORT=${PORT:-8000}
if (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; then refuse "something listens on port $PORT already; give another PORT"; fi
echo "+ vllm serve $TEACHER on port $PORT; log: $RUN/serve.log"
"${LAUNCH[@]}" "$PYTHON" -m gold.serve "$TEACHER" --port "$PORT" ${SERVE_ARGS:-} > "$RUN/serve.log" 2>&1 < /dev/null &
server=$!
disown "$server" # job %1 is a stage, see gold/jobs.sh
trap 'kill "$server" 2> /dev/null' EXIT
until (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; do
  kill -0 "$server" 2> /dev/null || refuse "vllm serve has ended: read $RUN/serve.log"
  sleep 0.5
done
GENERATE_ARGS+=" --server-url http://127.0.0.1:$PORT/v1" LABEL_ARGS+=" --server-url http://127.0.0.1:$PORT/v1"
