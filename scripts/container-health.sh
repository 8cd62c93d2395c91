#!/bin/bash
# Docker's HEALTHCHECK: healthy while the server is READY or BUSY, with its status as the reason otherwise.
# Plain bash, because starting a second Bun every half minute would cost more than the server itself.
exec 2>/dev/null
if ! exec 3<>"/dev/tcp/127.0.0.1/${PORT:-5000}"; then
  echo "nothing answers on port ${PORT:-5000}"
  exit 1
fi
printf 'GET /health-check HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' >&3
answer=$(timeout 4 cat <&3)
[[ $answer =~ \"status\":\ ?\"([A-Z_]+)\" ]] || {
  echo "no status in the answer"
  exit 1
}
echo "${BASH_REMATCH[1]}"
[[ ${BASH_REMATCH[1]} == READY || ${BASH_REMATCH[1]} == BUSY ]]
