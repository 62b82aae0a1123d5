# syntax=docker/dockerfile:1
# The HTTP service alone: no torch, no engine. Its workers are containers of their own (`launch: remote`).
#
#   docker build -f docker/service.Dockerfile -t rl-onoff-service .
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS dependencies
COPY docker/service.txt /build/requirements.txt
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --requirement /build/requirements.txt

FROM python:${PYTHON} AS wheel
COPY pyproject.toml README.md LICENSE /build/
COPY clients /build/clients
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /build

FROM python:${PYTHON}
RUN groupadd --gid 10001 onoff && useradd --uid 10001 --gid 10001 --create-home onoff
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=wheel /wheels /wheels
RUN /opt/venv/bin/python -m pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
WORKDIR /opt/rl-onoff
COPY demo/problems.jsonl demo/problems.jsonl
COPY workers workers
COPY app app
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/rl-onoff PYTHONDONTWRITEBYTECODE=1
# Inside a container the loopback address reaches nobody. Without keys the service does not start.
ENV RL_ONOFF_HOST=0.0.0.0 RL_ONOFF_PORT=8000 RL_ONOFF_CONFIG=/etc/rl-onoff/models.yaml
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["rl-onoff", "serve"]
