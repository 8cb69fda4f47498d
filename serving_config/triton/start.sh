#!/bin/sh
# Starts one tritonserver: what supervisord runs, again after every crash.
set -eu
cd "$ENGINE_DIR"

# A start begins bare: the control service loads the versions again. What an earlier start left is
# taken away first: workers that outlived it, shared memory, tokens.
TOKENS=$("$PYTHON" -P -m vlserve.stack.bare_triton "$ENGINE_DIR" "$SHM_PREFIX" "$TMPDIR")
INFERENCE_TOKEN=${TOKENS%% *}
REST=${TOKENS#* }
MANAGEMENT_TOKEN=${REST%% *}
CLOSED_TOKEN=${REST#* }
echo $$ > server.pid

# Archives carry their own code; what is on PYTHONPATH would come before it. Compiled files would be
# a change of a loaded version.
unset PYTHONPATH PYTHONHOME VLSERVE_GATEWAY
export PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8

# A worker is an embedded Python: that of the first python3 on the path, with the library of the
# very build behind it.
PATH="$(dirname "$PYTHON"):$PATH"
LD_LIBRARY_PATH="$PYTHON_LIBRARIES${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH LD_LIBRARY_PATH

# Nobody has the last token: shared memory, traces and log settings are closed.
MANAGED=health,metadata,model-config,model-repository,statistics
CLOSED=shared-memory,trace,logging
exec "$TRITON_HOME/bin/tritonserver" \
  --model-repository="$ENGINE_DIR/repository" \
  --backend-directory="$ENGINE_DIR/backends" \
  --model-control-mode=explicit \
  --disable-auto-complete-config \
  --strict-readiness=false \
  --exit-on-error=false \
  --exit-timeout-secs=10 \
  --http-address=127.0.0.1 \
  --http-port="$HTTP_PORT" \
  --http-thread-count=16 \
  --http-header-forward-pattern='(?i)x-(request-id|vlserve-(content-type|content-encoding|path|protocol|json-length|headers))' \
  --http-restricted-api="inference:authorization=Bearer $INFERENCE_TOKEN" \
  --http-restricted-api="$MANAGED:authorization=Bearer $MANAGEMENT_TOKEN" \
  --http-restricted-api="$CLOSED:authorization=Bearer $CLOSED_TOKEN" \
  --grpc-address=127.0.0.1 \
  --grpc-port="$GRPC_PORT" \
  --grpc-restricted-protocol="inference:authorization=Bearer $INFERENCE_TOKEN" \
  --grpc-restricted-protocol="$MANAGED:authorization=Bearer $MANAGEMENT_TOKEN" \
  --grpc-restricted-protocol="$CLOSED:authorization=Bearer $CLOSED_TOKEN" \
  --metrics-address=127.0.0.1 \
  --metrics-port="$METRICS_PORT" \
  --metrics-config=summary_latencies=true \
  --allow-gpu-metrics=false \
  --backend-config="python,shm-region-prefix-name=$SHM_PREFIX"
