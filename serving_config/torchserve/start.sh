#!/bin/sh
# Starts one TorchServe instance: what supervisord runs, again after every crash.
# Java itself, without the torchserve launcher: killing that launcher leaves Java and its workers.
set -eu
cd "$ENGINE_DIR"

# A start begins bare: the control service registers the versions again. Left-over archives would
# be "Model file already exists", a left-over key file a token that is no more.
rm -rf store logs/config key_file.json "$TMPDIR"
mkdir -p store logs "$TMPDIR"
chmod 700 "$TMPDIR"

# Archives carry their own code; what is on PYTHONPATH would come before it.
unset PYTHONPATH VLSERVE_GATEWAY

# In any other locale Java reads folder names that are not ASCII wrong.
export LC_ALL=C.UTF-8

# The quick compiler alone: Java is a small part of each request, and while the thorough one works
# the first thousands of requests pay for it.
# Out of memory, Java would go on with some of its threads dead: it ends instead, and comes back.
exec "$JAVA_HOME/bin/java" \
  -Xmx"${JAVA_HEAP_MIB:-3072}"m \
  -XX:+ExitOnOutOfMemoryError \
  -XX:TieredStopAtLevel=1 \
  -Dmodel_server_home="$TS_HOME" \
  -Djava.io.tmpdir="$TMPDIR" \
  -Dlog4j.configurationFile="file://$LOG_CONFIG" \
  -XX:+UseSerialGC \
  -cp "$TS_HOME/ts/frontend/*" \
  org.pytorch.serve.ModelServer \
  --python "$WORKER_COMMAND" -f config.properties -s store -ncs
