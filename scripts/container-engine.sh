#!/bin/bash
# Gets a Docker engine into a folder of its own and starts it there, for a machine that has none: root on Debian 12
# or 13 with apt. Nothing is installed into the system: packages are downloaded and unpacked under the folder.
# Usage: container-engine.sh FOLDER start|stop. After a start the engine listens on FOLDER/docker.sock.
set -euo pipefail
home=$(mkdir -p "$1" && cd "$1" && pwd -P)
root=$home/root

# Debian 12's engine lacks named build contexts, which `cog build` uses; 13's runs there, but its runc does not.
suite_of_engine=trixie

apt_of_suite() {
  apt-get -o Dir::Etc::sourcelist="$home/apt/engine.sources" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$home/apt/lists" -o Dir::Cache="$home/apt" -o Dir::State::status=/dev/null \
    -o APT::Sandbox::User=root "$@"
}

fetch() {
  . /etc/os-release
  mkdir -p "$home/apt/lists/partial" "$home/apt/archives/partial" "$home/debs" "$root"
  # The machine's own Debian mirror, with the engine's release in place of its own.
  sed "s/\b$VERSION_CODENAME\b/$suite_of_engine/g" /etc/apt/sources.list.d/debian.sources > "$home/apt/engine.sources"
  apt_of_suite update -qq
  apt-get update -qq
  cd "$home/debs"
  apt_of_suite download -qq docker.io docker-cli docker-buildx docker-compose containerd
  apt-get -o APT::Sandbox::User=root download -qq runc debootstrap docker-registry \
    iptables libip4tc2 libip6tc2 libnetfilter-conntrack3 libnfnetlink0 libnftnl11 libxtables12
  for package in *.deb; do
    dpkg -x "$package" "$root"
  done
  for name in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore; do
    ln -sf xtables-nft-multi "$root/usr/sbin/$name"
  done
  mkdir -p "$home/config/cli-plugins"
  cp "$root"/usr/libexec/docker/cli-plugins/docker-* "$home/config/cli-plugins/"
  touch "$home/fetched"
}

start() {
  [ -e "$home/fetched" ] || fetch
  local libraries
  libraries=$root/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
  PATH=$root/usr/sbin:$root/usr/bin:$PATH LD_LIBRARY_PATH=$libraries XTABLES_LIBDIR=$libraries/xtables \
    setsid nohup dockerd --data-root "$home/data" --exec-root "$home/exec" --pidfile "$home/docker.pid" \
    --host "unix://$home/docker.sock" --storage-driver overlay2 >> "$home/dockerd.log" 2>&1 < /dev/null &
  for _ in $(seq 150); do
    if [ -S "$home/docker.sock" ] && docker --host "unix://$home/docker.sock" info > /dev/null 2>&1; then
      return 0
    fi
    sleep 0.2
  done
  echo "the engine did not start; the end of $home/dockerd.log:" >&2
  tail -5 "$home/dockerd.log" >&2
  return 1
}

stop() {
  local pid
  pid=$(cat "$home/docker.pid" 2>/dev/null || true)
  [ -n "$pid" ] || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 150); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.2
  done
}

case $2 in
start) start ;;
stop) stop ;;
*)
  echo "usage: container-engine.sh FOLDER start|stop" >&2
  exit 2
  ;;
esac
