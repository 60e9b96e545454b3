# brainseg-bids: CPU and NVIDIA. Weights and everything else are inside; nothing is fetched at run time.
#   docker build -t brainseg-bids .
#   docker run --rm -v BIDS:/data:ro -v OUT:/out brainseg-bids /data /out participant
# For a smaller image without CUDA, or for ROCm, give pip the matching PyTorch index:
#   docker build --build-arg TORCH_ARGS="--index-url URL" -t brainseg-bids .
FROM python:3.11-slim-bookworm

ARG TORCH_ARGS=""
ENV PYTHONUNBUFFERED=1 PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 \
    LANG=C.UTF-8 LC_ALL=C.UTF-8 \
    OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
    MPLCONFIGDIR=/tmp/matplotlib HOME=/home/brainseg USER=brainseg \
    IS_DOCKER_8395080871=1

WORKDIR /opt/brainseg-bids
COPY constraints.txt ./
# In a layer of its own: PyTorch is most of the image and changes least.
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_ARGS} torch
COPY pyproject.toml README.md LICENSE ./
COPY brainseg_bids brainseg_bids
RUN pip install --no-cache-dir --constraint constraints.txt . \
    && pip install --no-cache-dir --constraint constraints.txt --no-deps dynamic-network-architectures \
    && mkdir -p /home/brainseg && chmod a+rwX /home/brainseg

WORKDIR /tmp
ENTRYPOINT ["brainseg"]
LABEL org.opencontainers.image.title="brainseg-bids" \
      org.opencontainers.image.licenses="Apache-2.0"
