#!/bin/bash
# Installs the Debian packages which a target of the Makefile needs and which are missing, and says why.
#
# Usage: packages.sh PYTHON TARGET
# A package counts as there when what it is for is there, wherever that comes from. Exit code 77: not root.
set -euo pipefail

python=$1 target=$2

# package, what it is for: a program, a file, or a module or C header of PYTHON; the targets that need it; why
read -r -d '' table <<'TABLE' || true
python3-venv    module:ensurepip        demo,test,check,install  makes the virtual environment
iproute2        ip                      demo,test                makes the network namespaces
util-linux      nsenter                 demo,test                runs programs in them
tayga           tayga                   demo,test                is the NAT64
iptables        iptables                demo,test                holds the rules
nftables        nft                     demo,test                holds the rules, and shows that none is left
curl            curl                    demo,test                is the IPv4-only program
wget            wget                    test                     is another one
netcat-openbsd  nc                      test                     asks whether a port is open
openssh-client  ssh                     test                     is one that wants a terminal
dropbear-bin    dropbear                test                     is its server, which its package does not start
tnat64          tnat64                  test                     is the original, to compare with
gcc             gcc                     test,compile             compiles the IPv4-only programs
libc6-dev       /usr/include/stdio.h    test,compile             compiles the IPv4-only programs
python3-dev     header:Python.h         test,compile             compiles the data plane
systemd         systemd-analyze         test,check               judges the unit files
mandoc          mandoc                  test                     judges the manual pages
TABLE

is_there() {
	case $1 in
		module:*) "$python" -c "import ${1#module:}" 2>/dev/null ;;
		header:*) [ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/${1#header:}" ] ;;
		/*) [ -e "$1" ] ;;
		*) command -v "$1" >/dev/null ;;
	esac
}

missing=() reasons=()
while read -r package purpose targets why; do
	if [[ ",$targets," == *",$target,"* ]] && ! is_there "$purpose"; then
		missing+=("$package")
		reasons+=("$package ($why)")
	fi
done <<<"$table"
[ ${#missing[@]} -gt 0 ] || exit 0

list=$(printf '%s, ' "${reasons[@]}")
echo "==> Debian packages: ${list%, }"
if ! command -v apt-get >/dev/null; then
	echo "There is no apt-get here: install these in your system's own way." >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "Installing packages needs root: sudo make $target" >&2
	exit 77
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
