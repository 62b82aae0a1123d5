# syntax=docker/dockerfile:1
# A worker on Hugging Face transformers, started by the service through its agent. torch's CPU build, or on a GPU
# machine the CUDA build, which is what the package index itself has:
#
#   docker build -f docker/worker-hf.Dockerfile --build-arg TORCH_INDEX= -t rl-onoff-worker-hf .
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS dependencies
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "${TORCH}"
COPY docker/worker-hf.txt /build/requirements.txt
RUN /opt/venv/bin/python -m pip install --no-cache-dir --requirement /build/requirements.txt

FROM python:${PYTHON} AS wheel
COPY pyproject.toml README.md LICENSE /build/
COPY clients /build/clients
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /build

FROM python:${PYTHON}
# Triton, in torch's CUDA build, compiles what launches its kernels when it runs.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 onoff && useradd --uid 10001 --gid 10001 --create-home onoff \
    && install --directory --owner 10001 --group 10001 /cache
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=wheel /wheels /wheels
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
WORKDIR /opt/rl-onoff
COPY demo demo
COPY workers workers
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/rl-onoff PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface NUMBA_CACHE_DIR=/tmp/numba TRITON_CACHE_DIR=/cache/triton
USER 10001:10001
EXPOSE 9000 9001
# The agent: it loads nothing itself, and answers while a worker of its own loads.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9000/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "workers.agent", "--host", "0.0.0.0", "--port", "9000", "--worker-port", "9001"]
