# GP4U as an image: `serve`, the API on port 8000, or `node run`, the kubelet API on 10250, and one
# writable place, /data. docs/howto/deploy.md and docs/howto/kubernetes.md say how it is run. BASE needs a Python that GP4U supports, pip, and libstdc++ for numpy. It is both
# where the wheel is built and what the image stands on, so that compiled packages fit.
ARG BASE=docker.io/library/python:3.13-slim-bookworm

FROM ${BASE} AS build
# For a mirror, or a folder of wheels where there is no network; pip knows them by these names.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_PYTHON_DOWNLOADS=never \
    UV_NO_CACHE=1
WORKDIR /src

# What is not in the lists with its hash is not installed, here and below.
COPY deploy/build-requirements.txt deploy/
RUN python3 -m venv --without-pip /tools \
    && python3 -m pip --python /tools/bin/python install --quiet --require-hashes \
       --requirement deploy/build-requirements.txt

COPY pyproject.toml uv.lock README.md LICENSE ./
RUN /tools/bin/uv export --quiet --frozen --offline --no-dev --no-emit-project --no-header \
       --extra kubernetes --extra postgres --extra redis --extra ssh --extra telemetry \
       --output-file requirements.txt \
    && python3 -m venv --without-pip /opt/gp4u \
    && python3 -m pip --python /opt/gp4u/bin/python install --quiet --require-hashes \
       --only-binary :all: --requirement requirements.txt

COPY src src
RUN /tools/bin/hatchling build --target wheel \
    && python3 -m pip --python /opt/gp4u/bin/python install --quiet --no-index --no-deps dist/*.whl \
    && mkdir /data


FROM ${BASE}
LABEL org.opencontainers.image.title="GP4U" \
      org.opencontainers.image.description="Every GPU marketplace as one pool, behind one API" \
      org.opencontainers.image.source="https://github.com/gp4u/gp4u" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/gp4u /opt/gp4u
COPY --from=build --chown=10001:10001 /data /data
# 0.0.0.0, because a published port arrives from outside of the container; so GP4U_API_TOKENS has to
# be set, or it does not start.
ENV PATH=/opt/gp4u/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/data \
    GP4U_HOST=0.0.0.0 \
    GP4U_PORT=8000 \
    GP4U_LOG_FORMAT=json \
    GP4U_DATABASE_URL=sqlite:////data/ledger.db
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000 10250
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["/opt/gp4u/bin/python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['GP4U_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["/opt/gp4u/bin/gp4u"]
CMD ["serve"]
