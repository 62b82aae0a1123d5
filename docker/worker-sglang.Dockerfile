# syntax=docker/dockerfile:1
# A worker on SGLang, for machines with NVIDIA GPUs, started by the service through its agent. What SGLang's own image brings
# is left as it is; added is what a worker needs besides.
#
#   docker build -f docker/worker-sglang.Dockerfile -t rl-onoff-worker-sglang .
ARG SGLANG=v0.5.23
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS wheel
COPY pyproject.toml README.md LICENSE /build/
COPY clients /build/clients
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /build

FROM lmsysorg/sglang:${SGLANG}
COPY --from=wheel /wheels /wheels
# Where the image's Python is its system's, pip wants to be told that this is meant.
ENV PIP_BREAK_SYSTEM_PACKAGES=1
RUN groupadd --gid 10001 onoff && useradd --uid 10001 --gid 10001 --create-home onoff \
    && install --directory --owner 10001 --group 10001 /cache \
    && python3 -m pip install --no-cache-dir 'aiohttp>=3.11,<4' 'msgspec>=0.19' 'numba>=0.61' 'array-api-compat>=1.11' \
        'httpx>=0.28,<1' 'httpx-sse>=0.4.2,<0.5' 'rich>=13.9' 'typer>=0.20' \
    && python3 -m pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
WORKDIR /opt/rl-onoff
COPY workers workers
ENV PYTHONPATH=/opt/rl-onoff PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface NUMBA_CACHE_DIR=/tmp/numba
USER 10001:10001
EXPOSE 9000 9001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9000/health', timeout=4)"]
ENTRYPOINT ["python3", "-m", "workers.agent", "--host", "0.0.0.0", "--port", "9000", "--worker-port", "9001"]
