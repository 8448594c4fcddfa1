# Images of the three services and of the demo.
#
# Two ways, one file. `make up` may give a base made from Debian packages, which has the
# system packages already, and wheels in wheels/. A plain `docker-compose up` takes the
# base from a registry and fetches packages and wheels in the build. No BuildKit needed.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS system
COPY deploy/packages.txt /tmp/packages.txt
# The base from Debian packages carries the mark; others get the packages here, but python3
# where the base brings its own.
RUN if [ ! -e /etc/tripod-base ]; then \
      apt-get update \
      && apt-get install -y --no-install-recommends $(grep -v '^python3' /tmp/packages.txt) \
      && rm -rf /var/lib/apt/lists/*; \
    fi

FROM system AS build
WORKDIR /build
COPY requirements.txt requirements-build.txt ./
COPY wheels/ wheels/
RUN python3 -m venv /opt/tripod \
    && if ls wheels/*.whl >/dev/null 2>&1; then from="--no-index --find-links wheels"; else from=""; fi \
    && /opt/tripod/bin/pip install --no-cache-dir --disable-pip-version-check -q $from --require-hashes -r requirements.txt \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check -q $from --require-hashes -r requirements-build.txt
COPY protos/ protos/
COPY tools/gen_protos.py tools/
RUN /opt/build/bin/python tools/gen_protos.py && find /opt/tripod -name __pycache__ -prune -exec rm -rf {} +

FROM system AS runtime
ENV PATH=/opt/tripod/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/app:/opt/app/gen PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MALLOC_ARENA_MAX=2
WORKDIR /opt/app
COPY --from=build /opt/tripod /opt/tripod
COPY --from=build /build/gen gen/
COPY deploy/health.py deploy/tripod ./
RUN chmod 0755 tripod && ln -s /opt/app/tripod /usr/local/bin/tripod
COPY LICENSE NOTICE ./
COPY services/ services/
COPY cli/ cli/
RUN python3 -m compileall -q services cli gen

FROM runtime AS kubelet
CMD ["python3", "-m", "services.kubelet"]

FROM runtime AS proxy
CMD ["python3", "-m", "services.proxy"]

FROM runtime AS cadvisor
CMD ["python3", "-m", "services.cadvisor"]

# The web server of the demo: the base and one file.
FROM ${BASE_IMAGE} AS demo
COPY examples/web/server.py /server.py
ENTRYPOINT ["python3", "-I", "-S", "-u", "/server.py"]
