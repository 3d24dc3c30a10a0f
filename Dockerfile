# One image for every part of a cluster: Ray head and workers, the driver, the MLflow server.
#   docker build --tag condense --build-arg REVISION="$(git rev-parse HEAD)" .
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml LICENSE README.md ./
# What the project needs, apart from the project: the next stage keeps gigabytes in a layer that code changes spare.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['cluster'], sep='\n')" > /requirements.txt
COPY condense condense
COPY cluster cluster
COPY tuning tuning
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE_IMAGE}
# KubeRay's default probes call wget.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/build/
COPY --from=build /requirements.txt /tmp/build/
RUN pip install --no-cache-dir --constraint /tmp/build/constraints.txt --requirement /tmp/build/requirements.txt
COPY --from=build /wheels /tmp/build/wheels
RUN pip install --no-cache-dir --no-deps /tmp/build/wheels/*.whl && pip check

RUN useradd --create-home --uid 1000 condense
USER condense
WORKDIR /home/condense
ENV PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true

ARG REVISION=unknown
LABEL org.opencontainers.image.title="condense" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

# What "healthy" means depends on the part that the container plays: whoever starts it says so.
HEALTHCHECK NONE
CMD ["condense", "--help"]
