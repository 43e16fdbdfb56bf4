# The two commands of README.md in an image, for a CPU or for CUDA.
#   docker build -t bifrost .
#   docker build -t bifrost:cuda --build-arg DEVICE=cuda .
#   docker build -t bifrost:tested --target tested .
#   docker run --rm -v "$PWD/outputs:/bifrost/outputs" bifrost bash scripts/demo.sh
#   docker run --rm --gpus all -p 7860:7860 bifrost:cuda .venv/bin/python -m compose.serve --host 0.0.0.0 --auth USER:PASSWORD
ARG DEVICE=cpu

FROM python:3.11-slim-bookworm AS cpu
ENV TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

# The wheels of PyPI bring the CUDA libraries; the driver is that of the host.
FROM python:3.11-slim-bookworm AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# hadolint ignore=DL3006
FROM ${DEVICE} AS ready
WORKDIR /bifrost
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip bash scripts/demo.sh

FROM ready AS tested
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN bash scripts/test.sh

FROM ready
CMD ["bash", "scripts/demo.sh"]
