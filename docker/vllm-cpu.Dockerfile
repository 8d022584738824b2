# Real vLLM on CPUs with tiny models: the environment that `loadgen cpu-env` builds (4 GB). Context: the project's root.
# pip must find a CPU build of torch: docs/docker.md, "Real vLLM on the CPU".
ARG PYTHON_IMAGE=python:3.12.13-slim-bookworm@sha256:4766d8b510c428e595d74b9cc5bbb2fae8e26316fffb4adc89908d79aacd58a2

FROM ${PYTHON_IMAGE} AS base
# vLLM's kernels are linked against libnuma, which slim images lack.
RUN ldconfig -p | grep -q libnuma.so.1 \
    || { apt-get update -q && apt-get install -q -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*; }

FROM base AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_FIND_LINKS=/src/build/wheels PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/build && python3 -m venv /opt/loadgen
COPY . /src
# Of loadgen only `cpu-env` is needed here. Triton has no CPU backend: vLLM would leave its gigabyte unused.
RUN /opt/build/bin/python -m pip install --quiet --no-deps --require-hashes -r /src/docker/requirements/build.txt \
    && /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/build/wheel /src \
    && /opt/loadgen/bin/python -m pip install --quiet --no-deps --require-hashes -r /src/docker/requirements/loadgen.txt \
    && /opt/loadgen/bin/python -m pip install --quiet --no-deps --no-index /opt/build/wheel/*.whl \
    && /opt/loadgen/bin/loadgen cpu-env --dir /opt/loadgen-cpu \
    && /opt/loadgen-cpu/venv/bin/python -m pip uninstall --quiet --yes triton

FROM base
COPY --from=build /opt/loadgen-cpu /opt/loadgen-cpu
ENV PATH=/opt/loadgen-cpu/venv/bin:${PATH} HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=15m --retries=6 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["vllm", "serve"]
