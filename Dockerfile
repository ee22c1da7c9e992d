# Two images from one file: --target inference, and --target trainer, which Ray's nodes also run.
#
#   BASE_IMAGE       a Debian 12; k8s/images/build.sh builds one if no registry is available
#   VARIANT          cpu or cuda: the build of torch. Both have the version in constraints.txt
#   TORCH_CPU_INDEX  the URL of PyTorch's package index of CPU builds, if pip can't find them otherwise
#   PIP_FIND_LINKS   a folder of wheels that is mounted for the build, if there is one
#
# The optional secrets pip_conf and ca_bundle are pip's configuration and certificates during the build; no layer contains them.
# The images contain no model: it is mounted, or downloaded by a Job (k8s/components/model-download).
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3=3.11.* ca-certificates=20* tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
    && groupadd --gid 10001 softprompt \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin softprompt

# pip and other build tools stay in this stage.
FROM base AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv=3.11.* \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /build/tools \
    && python3 -m venv --without-pip /opt/softprompt
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CONFIG_FILE=/run/secrets/pip.conf
WORKDIR /build
COPY constraints.txt ./
ARG VARIANT=cpu
ARG TORCH_CPU_INDEX=
ARG PIP_FIND_LINKS=
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca.crt \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    if [ "$VARIANT" = cpu ] && [ -n "$TORCH_CPU_INDEX" ]; then export PIP_EXTRA_INDEX_URL="$TORCH_CPU_INDEX"; fi; \
    /build/tools/bin/pip --python /opt/softprompt/bin/python install --constraint constraints.txt torch setuptools==84.2.1 \
    && /opt/softprompt/bin/python -W ignore -c "import torch; exit(None if (torch.version.cuda is not None) == ('$VARIANT' == 'cuda') else \
        f'VARIANT=$VARIANT, and pip took torch {torch.__version__}. For the CPU image, set the build argument TORCH_CPU_INDEX to the URL' \
        ' of the package index of CPU builds; for the CUDA image, leave it out.')"
COPY pyproject.toml k8s/images/requirements.py ./
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca.crt \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 requirements.py common > common.txt \
    && /build/tools/bin/pip --python /opt/softprompt/bin/python install --constraint constraints.txt --requirement common.txt

# The project's own packages, without their dependencies: a change of the code rebuilds only from here. Building the
# wheel compiles its C, because no image has a compiler.
FROM build AS wheel
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:12.* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca.crt \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    /build/tools/bin/pip install --constraint constraints.txt hatchling
COPY pyproject.toml hatch_build.py README.md LICENSE /build/source/
COPY protos /build/source/protos
COPY shared /build/source/shared
COPY trainer_service /build/source/trainer_service
COPY inference_service /build/source/inference_service
COPY softprompt /build/source/softprompt
WORKDIR /build/source
RUN /build/tools/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /build/wheels .

FROM build AS inference-build
COPY --from=wheel /build/wheels /build/wheels
RUN /build/tools/bin/pip --python /opt/softprompt/bin/python install --no-deps --no-index /build/wheels/*.whl

FROM build AS trainer-packages
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca.crt \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 requirements.py trainer > trainer.txt \
    && /build/tools/bin/pip --python /opt/softprompt/bin/python install --constraint constraints.txt --requirement trainer.txt

FROM trainer-packages AS trainer-build
COPY --from=wheel /build/wheels /build/wheels
RUN /build/tools/bin/pip --python /opt/softprompt/bin/python install --no-deps --no-index /build/wheels/*.whl

# Runtime of both images: Debian, Python, one unprivileged user. The services write only to /tmp, /dev/shm and mounted volumes.
FROM base AS runtime
ENV PATH=/opt/softprompt/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.vendor="softprompt" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="debian:bookworm-slim" \
      softprompt.variant="${VARIANT}"
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--"]
STOPSIGNAL SIGTERM

FROM runtime AS inference
LABEL org.opencontainers.image.title="softprompt-inference" \
      org.opencontainers.image.description="Serves a frozen language model with the soft prompts of a prompt store, over gRPC."
COPY --from=inference-build /opt/softprompt /opt/softprompt
ENV SOFTPROMPT_INFERENCE_HOST=0.0.0.0 SOFTPROMPT_INFERENCE_PORT=50052 SOFTPROMPT_INFERENCE_METRICS_PORT=9092
EXPOSE 50052 9092
CMD ["softprompt-inference"]

FROM runtime AS trainer
LABEL org.opencontainers.image.title="softprompt-trainer" \
      org.opencontainers.image.description="Trains soft prompts over gRPC with Ray, keeps jobs, publishes versions."
COPY --from=trainer-build /opt/softprompt /opt/softprompt
ENV SOFTPROMPT_TRAINER_HOST=0.0.0.0 SOFTPROMPT_TRAINER_PORT=50051 SOFTPROMPT_TRAINER_METRICS_PORT=9091 RAY_USAGE_STATS_ENABLED=0
EXPOSE 50051 9091
CMD ["softprompt-trainer"]
