#!/bin/sh
# `python` in our own image, for the two command lines that the cog CLI and Cog's documentation run in an
# image: `python -m cog.server.http [flags]` starts the Bun server, and `python -m pip freeze` (asked after a
# `cog build`) answers that nothing is frozen. Everything else goes to the image's real Python, if it has one.
set -eu

case " $* " in
*" -m pip freeze "*)
  exit 0
  ;;
*" -m cog.server.http "*)
  # Options of Python itself may stand before it; what follows is for the server.
  while [ "$1" != "cog.server.http" ]; do
    shift
  done
  shift
  exec bun run "${COG_COMFYUI_HOME:-/src}/predict.ts" "$@"
  ;;
esac

for real in /usr/bin/python3 /usr/local/bin/python3; do
  if [ -x "$real" ]; then
    exec "$real" "$@"
  fi
done
echo "python: this image has no Python; it answers only \`python -m cog.server.http\`, which starts the Bun server." >&2
exit 127
