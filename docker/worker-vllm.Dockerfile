# The service with vLLM workers, for machines with NVIDIA GPUs. Two environments in one image, since their pins
# conflict: the service's own, and vLLM's, as its image brings it, in which the workers run (`python: python3`).
#
#   docker build -f docker/worker-vllm.Dockerfile -t rl-onoff-vllm .
#   docker run --gpus all --ipc host -p 127.0.0.1:8000:8000 -v /models:/models -v ./models.yaml:/etc/rl-onoff.yaml:ro rl-onoff-vllm
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}

WORKDIR /opt/rl-onoff
COPY pyproject.toml README.md LICENSE ./
COPY clients clients
COPY app app
COPY workers workers
COPY demo demo

RUN python3 -m pip install --no-cache-dir 'aiohttp>=3.11,<4' 'msgspec>=0.19' 'numba>=0.61' 'array-api-compat>=1.11' \
        'httpx-sse>=0.4.2,<0.5' 'rich>=13.9' 'typer>=0.20' \
    && python3 -m pip install --no-cache-dir --no-deps --editable . \
    && python3 -m venv /opt/service \
    && /opt/service/bin/pip install --no-cache-dir --editable '.[server]'

# Inside a container the loopback address reaches nobody. Whoever publishes the port decides who does.
ENV RL_ONOFF_HOST=0.0.0.0 RL_ONOFF_ALLOW_UNAUTHENTICATED=1 RL_ONOFF_CONFIG=/etc/rl-onoff.yaml
EXPOSE 8000
ENTRYPOINT ["/opt/service/bin/rl-onoff", "serve"]
