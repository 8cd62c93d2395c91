#!/bin/sh
# `cog-comfyui` in the image: the same commands as bin/cog-comfyui in a checkout, without its bootstrap.
exec bun "${COG_COMFYUI_HOME:-/src}/predict.ts" "$@"
