#!/bin/bash
# Installs what the benchmark needs and what it compares, one Debian package after the other.
#
# Not one that cannot be installed is an error here: the benchmark names every peer that is missing, with the
# reason, and ends with a clear word where it cannot run at all.
#
# Usage: packages.sh PYTHON
set -euo pipefail

python=$1

# package, what it is for: a program, a file, or a module or C header of PYTHON
read -r -d '' table <<'TABLE' || true
python3-venv         module:ensurepip
iproute2             ip
util-linux           nsenter
iptables             iptables
gcc                  gcc
libc6-dev            /usr/include/stdio.h
python3-dev          header:Python.h
wrk                  wrk
nginx-light          nginx
libnginx-mod-stream  /usr/lib/nginx/modules/ngx_stream_module.so
haproxy              haproxy
socat                socat
tayga                tayga
tnat64               tnat64
TABLE

is_there() {
	case $1 in
		module:*) "$python" -c "import ${1#module:}" 2>/dev/null ;;
		header:*) [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/${1#header:}" ] ;;
		/*) [ -e "$1" ] ;;
		*) command -v "$1" >/dev/null ;;
	esac
}

updated=
while read -r package purpose; do
	is_there "$purpose" && continue
	if ! command -v apt-get >/dev/null; then
		echo "==> $package is missing, and there is no apt-get here" >&2
		continue
	fi
	export DEBIAN_FRONTEND=noninteractive
	[ -n "$updated" ] || apt-get update -qq || true
	updated=yes
	echo "==> Debian package $package (where its service starts, systemctl disable --now $package stops it)"
	apt-get install -qq --yes --no-install-recommends "$package" >/dev/null </dev/null \
		|| echo "==> $package cannot be installed" >&2
done <<<"$table"
