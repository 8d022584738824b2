# Real vLLM on CPUs with tiny models: the environment that `loadgen cpu-env` builds (4 GB). Context: the project's root.
# pip must find a CPU build of torch: see docs/serving.md, "Without a GPU".
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_FIND_LINKS=/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY LICENSE build/wheels* /wheels/
RUN python3 -m venv /opt/loadgen
COPY . /src
RUN /opt/loadgen/bin/python -m pip install --quiet /src \
    && /opt/loadgen/bin/loadgen cpu-env --dir /opt/loadgen-cpu

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/loadgen-cpu /opt/loadgen-cpu
ENV PATH=/opt/loadgen-cpu/venv/bin:${PATH} HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=15m --retries=6 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vllm", "serve"]
