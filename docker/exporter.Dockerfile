# `loadgen exporter` alone, without what only sweeps and reports need. Context: the project's root.
# NVML itself comes from the host through NVIDIA's container toolkit.
ARG PYTHON_IMAGE=python:3.12.13-slim-bookworm@sha256:4766d8b510c428e595d74b9cc5bbb2fae8e26316fffb4adc89908d79aacd58a2

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_FIND_LINKS=/src/build/wheels PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/build && python3 -m venv /opt/loadgen
COPY . /src
RUN /opt/build/bin/python -m pip install --quiet --no-deps --require-hashes -r /src/docker/requirements/build.txt \
    && /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/build/wheel /src \
    && /opt/loadgen/bin/python -m pip install --quiet --no-deps --require-hashes -r /src/docker/requirements/exporter.txt \
    && /opt/loadgen/bin/python -m pip install --quiet --no-deps --no-index /opt/build/wheel/*.whl \
    && /opt/loadgen/bin/python -m pip uninstall --quiet --yes pip setuptools \
    && find /opt/loadgen/lib -type d -name tests -prune -exec rm -r {} + \
    && /opt/loadgen/bin/python -m compileall -q /opt/loadgen/lib

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/loadgen /opt/loadgen
ENV PATH=/opt/loadgen/bin:${PATH} HOME=/tmp NVIDIA_DRIVER_CAPABILITIES=utility \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9401/health', timeout=4)"]
ENTRYPOINT ["loadgen"]
CMD ["exporter", "--host", "0.0.0.0", "--port", "9401"]
