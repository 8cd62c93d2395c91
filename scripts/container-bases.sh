#!/bin/bash
# Makes the base images that our Dockerfile and the cog CLI's generated one name, where none can be pulled: a minimal
# Debian from packages, this checkout's Bun, and stand-ins under the very names. Root; the engine is DOCKER_HOST's.
# Usage: container-bases.sh FOLDER BUN product|cog. `cog` adds what generated builds need (Python, uv, a front end).
set -euo pipefail
home=$(cd "$1" && pwd -P)
bun=$2
root=$home/root
bases=$home/bases
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}

has_image() {
  docker image inspect "$1" > /dev/null 2>&1
}

bun_version=$("$bun" --version)

debian() {
  local rootfs=$home/rootfs inside=/etc/ssl/certs/local-ca.crt
  if [ ! -e "$rootfs.done" ]; then
    rm -rf "$rootfs"
    DEBOOTSTRAP_DIR=$root/usr/share/debootstrap "$root/usr/sbin/debootstrap" --variant=minbase bookworm "$rootfs" > "$home/debootstrap.log"
    # As the official slim image: no caches, no documents, no translations.
    rm -rf "$rootfs"/var/cache/apt/* "$rootfs"/var/lib/apt/lists/* "$rootfs"/var/log/* "$rootfs"/usr/share/{doc,man,info}/*
    find "$rootfs/usr/share/locale" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
    # A build's HTTPS clients may need this machine's own certificates. Only the stand-in has them.
    mkdir -p "$rootfs/etc/ssl/certs" && cp "$certificates" "$rootfs$inside"
    touch "$rootfs.done"
  fi
  tar -C "$rootfs" -c . | docker import \
    -c "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin SSL_CERT_FILE=$inside NODE_EXTRA_CA_CERTS=$inside PIP_CERT=$inside GIT_SSL_CAINFO=$inside" \
    -c 'CMD ["bash"]' - debian:bookworm-slim > /dev/null
}

bun_image() {
  mkdir -p "$bases/bun" && cp -f "$bun" "$bases/bun/bun"
  printf 'FROM debian:bookworm-slim\nCOPY --chmod=755 bun /usr/local/bin/bun\n' > "$bases/bun/Dockerfile"
  docker build -q -t "oven/bun:$bun_version-slim" "$bases/bun" > /dev/null
}

python_image() {
  mkdir -p "$bases/python"
  # tini's release can't be fetched here: the generated Dockerfile's one such download is answered from Debian's package.
  cat > "$bases/python/curl" <<'SCRIPT'
#!/bin/bash
if [[ "$*" == */tini/releases/* ]]; then
  while [ "$1" != -o ]; do shift; done
  exec cp /usr/bin/tini "$2"
fi
exec /usr/bin/curl "$@"
SCRIPT
  cat > "$bases/python/Dockerfile" <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -qqy --no-install-recommends python3 python3-pip tini \
  && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/lib/python3*/EXTERNALLY-MANAGED \
  && ln -s /usr/bin/python3 /usr/local/bin/python
COPY --chmod=755 curl /usr/local/bin/curl
DOCKERFILE
  docker build -q -t python:3.11-slim "$bases/python" > /dev/null
}

uv_image() {
  # The version that the generated Dockerfile names.
  local version=0.9.26 folder=$bases/uv
  mkdir -p "$folder"
  if [ ! -x "$folder/uv" ]; then
    python3 -m pip download -q --no-deps -d "$folder/wheel" "uv==$version"
    python3 -m zipfile -e "$folder"/wheel/uv-*.whl "$folder/wheel/x"
    cp "$folder"/wheel/x/uv-*.data/scripts/uv* "$folder/"
    rm -rf "$folder/wheel"
  fi
  printf 'FROM scratch\nCOPY --chmod=755 uv uvx /\n' > "$folder/Dockerfile"
  docker build -q -t "ghcr.io/astral-sh/uv:$version" "$folder" > /dev/null
}

front_end_image() {
  local folder=$bases/front-end
  mkdir -p "$folder"
  if [ ! -x "$folder/dockerfile-frontend" ]; then
    GOBIN=$folder CGO_ENABLED=0 GOFLAGS=-trimpath go install -ldflags='-s -w' \
      github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend@v0.13.2
  fi
  cat > "$folder/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY --chmod=755 dockerfile-frontend /bin/dockerfile-frontend
LABEL moby.buildkit.frontend.network.none="true" \
      moby.buildkit.frontend.caps="moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts,moby.buildkit.frontend.gitquerystring"
ENTRYPOINT ["/bin/dockerfile-frontend"]
DOCKERFILE
  docker build -q -t docker/dockerfile:1.4 "$folder" > /dev/null
}

has_image debian:bookworm-slim || debian
has_image "oven/bun:$bun_version-slim" || bun_image
if [ "$3" = cog ]; then
  has_image python:3.11-slim || python_image
  has_image ghcr.io/astral-sh/uv:0.9.26 || uv_image
  has_image docker/dockerfile:1.4 || front_end_image
fi
