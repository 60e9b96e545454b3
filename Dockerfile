# brainseg-bids. Weights and everything else are inside; nothing is fetched at run time.
#   docker build -t brainseg-bids .                                CPU
#   docker build -t brainseg-bids --build-arg VARIANT=cuda .       NVIDIA; rocm: AMD
#   docker run --rm -u "$(id -u):$(id -g)" -v BIDS:/data:ro -v OUT:/out brainseg-bids /data /out participant -w /out/work
# More in docs/how-to/containers.md. The steps are in docker/install.sh, which singularity.def runs, too.

# By digest, so that the same build gives the same image: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG VARIANT=cpu
ARG TORCH_INDEX=""
ARG EXTRAS=""
# for --output-spaces, which downloads nothing
ARG TEMPLATES="MNI152NLin2009cAsym:1 MNI152NLin2009cAsym:2"
WORKDIR /src
COPY constraints.txt ./
COPY docker docker
# The secret is for sites that reach PyPI through a mirror; it is not kept in the image.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf sh docker/install.sh torch
COPY pyproject.toml README.md LICENSE ./
COPY brainseg_bids brainseg_bids
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf sh docker/install.sh app

FROM ${BASE}
# Of the labels below: --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" --build-arg SOURCE=URL
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG SOURCE=https://pypi.org/project/brainseg-bids/
COPY --from=build /opt/brainseg /opt/brainseg
COPY --from=build /opt/brainseg/version /version
RUN useradd --create-home --uid 1000 --user-group brainseg
ENV PATH=/opt/brainseg/bin:/usr/local/bin:/usr/bin:/bin \
    TEMPLATEFLOW_HOME=/opt/brainseg/templateflow \
    PYTHONUNBUFFERED=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 \
    LC_ALL=C.UTF-8 \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1 \
    NO_ET=1 \
    IS_DOCKER_8395080871=1
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["brainseg"]
LABEL org.opencontainers.image.title="brainseg-bids" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.licenses="Apache-2.0"
