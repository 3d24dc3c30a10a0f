# One image for every part of a cluster: Ray head and workers, the driver, the MLflow server; on CPUs and on NVIDIA GPUs.
#   docker build --tag condense --build-arg REVISION="$(git rev-parse HEAD)" .
# PyTorch brings its own CUDA libraries, so a GPU machine needs only its driver and the NVIDIA container toolkit.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml LICENSE README.md ./
# What the project needs, apart from the project: the next stage keeps gigabytes in a layer that code changes spare.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; \
print(*p['dependencies'], *e['cluster'], *e['server'], sep='\n')" > /requirements.txt
COPY condense condense
COPY cluster cluster
COPY tuning tuning
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE}
# wget asks for health, here and in KubeRay's own probes. gcc builds the CPU's convolutions at their first use, for the
# processor that is there: two to three times as fast as without.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/build/
COPY --from=build /requirements.txt /tmp/build/
RUN pip install --no-cache-dir --constraint /tmp/build/constraints.txt --requirement /tmp/build/requirements.txt
COPY --from=build /wheels /tmp/build/wheels
RUN pip install --no-cache-dir --no-deps /tmp/build/wheels/*.whl && pip check

# Volumes that are mounted on these folders belong to the user, too.
RUN useradd --create-home --uid 1000 condense \
    && install --directory --owner condense --group condense /data /home/condense/condensed /home/condense/runs
USER condense
WORKDIR /home/condense
# A head remembers every job there ever was: with metrics 0.3 MiB (who scrapes them for Prometheus sets this to 1), and
# 100,000 dead actors and tasks of them. One heap for all threads: large tensors stay in it.
ENV PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_enable_metrics_collection=0 \
    RAY_maximum_gcs_destroyed_actor_cached_count=100 \
    RAY_maximum_gcs_dead_worker_cached_count=100 \
    RAY_task_events_max_num_task_in_gcs=1000 \
    MALLOC_ARENA_MAX=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true

# Condense writes the revision into every dataset: an image holds no checkout to ask.
ARG REVISION=unknown
ENV CONDENSE_REVISION=${REVISION}
LABEL org.opencontainers.image.title="condense" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

# A part that serves something says where its health is to be asked; a driver serves nothing and is healthy.
#   Ray head: HEALTH_URL=http://127.0.0.1:8265/api/gcs_healthz   MLflow: HEALTH_URL=http://127.0.0.1:5000/health
#   Ray worker: HEALTH_URL=http://127.0.0.1:52365/api/local_raylet_healthz
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=4 \
    CMD test -z "$HEALTH_URL" || wget --quiet --tries=1 --timeout=8 --output-document=/dev/null "$HEALTH_URL"
CMD ["condense", "--help"]
