# syntax=docker/dockerfile:1
# One image for every role: `espalier serve`, `espalier work`, `espalier migrate`, `espalier doctor`.
#   docker build -t espalier .
#   docker build -t espalier:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
# Where the torch wheel comes from, torch alone. Empty: the default index (CUDA wheels, several GB).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Its SHA-256, in hex, where that is to be checked, too.
ARG TORCH_SHA256=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/espalier
WORKDIR /src
COPY constraints.txt requirements.lock ./
RUN /opt/espalier/bin/pip install --require-hashes --no-deps --requirement requirements.lock
# torch, and of what it needs only what the lock does not hold: the CUDA libraries of its GPU wheels (docs/security.md).
RUN if [ -n "$TORCH_SHA256" ]; then \
      echo "$(grep '^torch==' constraints.txt) --hash=sha256:$TORCH_SHA256" > torch.lock \
      && /opt/espalier/bin/pip install --no-deps --require-hashes ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.lock; \
    fi \
 && /opt/espalier/bin/pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY client ./client
COPY app ./app
COPY migrations ./migrations
RUN /opt/espalier/bin/pip install --no-deps --no-build-isolation ./client . \
 && /opt/espalier/bin/pip check
COPY deploy/sbom.py /opt/espalier/sbom.py

FROM python:${PYTHON_VERSION}-slim-bookworm
RUN groupadd --system --gid 10001 espalier \
 && useradd --system --uid 10001 --gid espalier --home-dir /var/lib/espalier --shell /usr/sbin/nologin espalier \
 && install -d -o espalier -g espalier -m 0750 /var/lib/espalier
COPY --from=build /opt/espalier /opt/espalier
RUN /opt/espalier/bin/python /opt/espalier/sbom.py --system > /opt/espalier/sbom.cdx.json
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
