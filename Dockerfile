# syntax=docker/dockerfile:1
# One image for every role: `espalier serve`, `espalier work`, `espalier migrate`, `espalier doctor`.
#   docker build -t espalier .
#   docker build -t espalier:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
# Where the torch wheel comes from, torch alone. Empty: the default index (CUDA wheels, several GB).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/espalier
WORKDIR /src
COPY constraints.txt ./
RUN if [ -n "$TORCH_INDEX" ]; then \
      /opt/espalier/bin/pip install --no-deps --index-url "$TORCH_INDEX" --constraint constraints.txt torch; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY app ./app
COPY migrations ./migrations
RUN /opt/espalier/bin/pip install --constraint constraints.txt ./client .

FROM python:${PYTHON_VERSION}-slim-bookworm
RUN groupadd --system --gid 10001 espalier \
 && useradd --system --uid 10001 --gid espalier --home-dir /var/lib/espalier --shell /usr/sbin/nologin espalier \
 && install -d -o espalier -g espalier -m 0750 /var/lib/espalier
COPY --from=build /opt/espalier /opt/espalier
ENV PATH=/opt/espalier/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ESPALIER_DATA_DIR=/var/lib/espalier \
    ESPALIER_HOST=0.0.0.0 \
    ESPALIER_PORT=8000
USER espalier
WORKDIR /var/lib/espalier
VOLUME /var/lib/espalier
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['ESPALIER_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["espalier"]
CMD ["serve"]
