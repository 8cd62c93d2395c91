# The lean production image. Stages, from which two images are made:
#   docker build .                      the `gpu` target: ComfyUI, its Python and the custom nodes included
#   docker build --target embedded .    Bun and the product alone: the built-in engine, no Python
# Everything that is fetched is pinned by an argument below. docs/deploy/docker.md tells how to run the result.

ARG BASE=debian:bookworm-slim
ARG BUN_IMAGE=oven/bun:1.4.5-slim
# What a plain `docker build` and `cog build --dockerfile Dockerfile` make: gpu or embedded.
ARG TARGET=gpu

FROM ${BUN_IMAGE} AS bun

# ---- what both images stand on: init, Bun (which brings its own certificates), an ordinary user -------------
FROM ${BASE} AS runtime
RUN apt-get update -qq \
  && apt-get install -qqy --no-install-recommends tini \
  && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /var/cache/ldconfig/aux-cache
# Fixed ids, so that the owner of a volume can be told in advance. Any other uid works too: the folders that
# are written are open, as /tmp is.
RUN groupadd --gid 1000 cog && useradd --uid 1000 --gid 1000 --no-log-init --home-dir /tmp --no-create-home cog \
  && install -d -m 0777 /models /cache
COPY --from=bun --chmod=755 /usr/local/bin/bun /usr/local/bin/bun

# ---- the locked production dependencies, without what only compilers, debuggers and other runtimes read ------
FROM runtime AS dependencies
WORKDIR /src
COPY package.json bun.lock bunfig.toml ./
RUN bun install --frozen-lockfile --production --ignore-scripts --no-progress \
  && find node_modules -type f \( -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' -o -name '*.map' \) -delete \
  && rm -rf node_modules/@types node_modules/undici-types node_modules/zod/src node_modules/bare-*/prebuilds

# ---- the sources, readable for any user whatever umask the checkout was made with ---------------------------
FROM dependencies AS sources
COPY . .
RUN mkdir -p .cog && bun scripts/signature.ts --openapi > .cog/openapi_schema.json
# The two programs that a start waits for, each compiled into one file with its bytecode, in place of its source: a
# hundred modules less to find, read and parse. What is left out is loaded at its first use.
RUN bun build predict.ts src/comfy/embedded/main.ts --target=bun --bytecode --outdir=/compiled \
    --external=sharp --external=standardwebhooks --external=tar-stream --external=undici \
  && for entry in predict src/comfy/embedded/main; do \
    mv "/compiled/${entry}.js" "${entry}.ts" && mv "/compiled/${entry}.js.jsc" "${entry}.ts.jsc" || exit 1; \
  done
RUN mv node_modules /node_modules && chmod -R u=rwX,go=rX .

# ---- the product --------------------------------------------------------------------------------------------
FROM runtime AS product
WORKDIR /src
COPY --chmod=755 scripts/container-python.sh /usr/local/bin/python
COPY --chmod=755 scripts/container-health.sh /usr/local/bin/cog-comfyui-health
COPY --chmod=755 scripts/container-cli.sh /usr/local/bin/cog-comfyui
COPY --from=dependencies /src/node_modules ./node_modules
COPY --from=sources /src ./
# /models is for a volume; /opt/models is for weights baked into the image (docs/deploy/docker.md). Both are
# searched, the first one that can be written receives downloads. The transpiler's cache would need a home.
ENV COMFYUI_MODELS_DIR=/models:/opt/models \
    HOME=/tmp \
    BUN_RUNTIME_TRANSPILER_CACHE_PATH=0
EXPOSE 5000
# A start may download for long; inside the start period a failing check counts for nothing.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m --start-interval=2s CMD ["cog-comfyui-health"]
USER 1000:1000
ENTRYPOINT ["tini", "--"]
CMD ["bun", "run", "/src/predict.ts"]
ARG VERSION=0.1.0
ARG REVISION=
# With the schema, the cog CLI refuses a wrong input before it starts the container; `{}` makes it ask the
# running server instead. `bin/with-bun scripts/container.ts build` gives it, and so does `cog build`.
ARG OPENAPI_SCHEMA={}
LABEL org.opencontainers.image.title="cog-comfyui-bun" \
      org.opencontainers.image.description="A Cog-compatible predictor for ComfyUI workflows" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      run.cog.has_init="true" \
      run.cog.openapi_schema="${OPENAPI_SCHEMA}"

FROM product AS embedded
ENV COMFYUI_ENGINE=embedded
LABEL run.cog.config='{"build":{"gpu":false}}'

# ---- ComfyUI with its Python and custom nodes; built only for the gpu target --------------------------------
FROM ${BASE} AS comfyui
RUN apt-get update -qq \
  && apt-get install -qqy --no-install-recommends git ca-certificates python3 python3-venv \
  && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG COMFYUI_REPO=https://github.com/comfyanonymous/ComfyUI
# ComfyUI 0.33.0
ARG COMFYUI_COMMIT=2f35f4a08176d993cded35dac3332be4f7287f41
WORKDIR /opt/ComfyUI
RUN git init -q . && git fetch -q --depth 1 "${COMFYUI_REPO}" "${COMFYUI_COMMIT}" \
  && git checkout -q FETCH_HEAD && rm -rf .git
# These three are built for one another (CUDA 13.0: NVIDIA driver 580 or newer). For an older driver, give the
# address that PyTorch's install page prints for your CUDA version. ComfyUI's web page (0.5 GB) is left out: we
# start it without one.
ARG TORCH_VERSION=2.11.0
ARG TORCHVISION_VERSION=0.26.0
ARG TORCHAUDIO_VERSION=2.11.0
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
  printf 'torch==%s\ntorchvision==%s\ntorchaudio==%s\n' "${TORCH_VERSION}" "${TORCHVISION_VERSION}" "${TORCHAUDIO_VERSION}" > constraints.txt \
  && python3 -m venv .venv \
  && .venv/bin/pip install --no-compile ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} -r constraints.txt \
  && grep -vE '^comfyui-(frontend-package|workflow-templates|embedded-docs)' requirements.txt > needed.txt \
  && .venv/bin/pip install --no-compile -c constraints.txt -r needed.txt
# NODES names a list of custom_nodes.json; the packs' own requirements must not move torch.
ARG NODES=default
COPY --from=bun --chmod=755 /usr/local/bin/bun /usr/local/bin/bun
COPY custom_nodes.json scripts/container-nodes.ts /tmp/nodes/
RUN --mount=type=cache,target=/root/.cache/pip \
  bun /tmp/nodes/container-nodes.ts --list "${NODES}" --file /tmp/nodes/custom_nodes.json \
    --into /opt/ComfyUI/custom_nodes --pip .venv/bin/pip --constraints constraints.txt

FROM product AS gpu
USER root
# python3: the interpreter of the copied environment. The rest: what common packs load, and certificates for Python.
RUN apt-get update -qq \
  && apt-get install -qqy --no-install-recommends ca-certificates python3 libgl1 libglib2.0-0 libgomp1 \
  && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /var/cache/ldconfig/aux-cache
COPY --from=comfyui /opt/ComfyUI /opt/ComfyUI
# `real` is explicit: without its ComfyUI this image reports a failed setup, never the embedded engine's pictures.
ENV COMFYUI_ENGINE=real \
    COMFYUI_PATH=/opt/ComfyUI \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
LABEL run.cog.config='{"build":{"gpu":true}}'

FROM ${TARGET} AS image
