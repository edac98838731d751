#!/bin/sh
# Runs a command in this directory, at a place where nobody can read it: as nobody some tests run the program.
#
# Usage: readable.sh COMMAND...
# A checkout below /root, say, is seen at /mnt, by the command only.
set -eu

if ! setpriv --reuid=65534 --regid=65534 --clear-groups test -r "$PWD/pyproject.toml"; then
	echo "==> nobody can read $PWD, which is seen at /mnt therefore"
	exec unshare --mount sh -ec 'mount --bind . /mnt; cd /mnt; exec "$@"' sh "$@"
fi
exec "$@"
