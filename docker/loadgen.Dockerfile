# loadgen with everything it needs to sweep, simulate and report. Context: the project's root.
# Wheels in build/wheels are preferred to an index; with PIP_NO_INDEX=1 no index is used.
ARG PYTHON_IMAGE=python:3.12.13-slim-bookworm@sha256:4766d8b510c428e595d74b9cc5bbb2fae8e26316fffb4adc89908d79aacd58a2

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_INDEX
ENV PIP_FIND_LINKS=/src/build/wheels PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/build && python3 -m venv /opt/loadgen
COPY . /src
# Packages bring their tests along: a quarter of what is installed.
RUN /opt/build/bin/python -m pip install --quiet --no-deps --require-hashes -r /src/docker/requirements/build.txt \
    && /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /opt/build/wheel /src \
    && /opt/loadgen/bin/python -m pip install --quiet --no-deps --require-hashes -r /src/docker/requirements/loadgen.txt \
    && /opt/loadgen/bin/python -m pip install --quiet --no-deps --no-index /opt/build/wheel/*.whl \
    && /opt/loadgen/bin/python -m pip uninstall --quiet --yes pip setuptools \
    && find /opt/loadgen/lib -type d -name tests -prune -exec rm -r {} + \
    && /opt/loadgen/bin/python -m compileall -q /opt/loadgen/lib

FROM ${PYTHON_IMAGE}
RUN mkdir -p /runs /cache && chmod 1777 /runs /cache
COPY --from=build /opt/loadgen /opt/loadgen
# No home folder: /runs and /cache are kept, /tmp may be lost.
ENV PATH=/opt/loadgen/bin:${PATH} HOME=/tmp XDG_CACHE_HOME=/cache MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# A sweep is healthy while it serves its own metrics.
HEALTHCHECK --interval=5s --timeout=5s --start-period=1m --retries=6 CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9402/metrics', timeout=4)"]
ENTRYPOINT ["loadgen"]
CMD ["--help"]
