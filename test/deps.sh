#!/bin/sh
# Installs the Debian packages that the end-to-end tests and the benchmark call, and only those of which something is
# missing. Needs root for that, and nothing if all is there.
set -eu

missing=
want() { # want PACKAGE FILE-OR-COMMAND...
	package=$1
	shift
	for x in "$@"; do
		case $x in
		/*) found=$(ls $x 2>/dev/null | head -n 1) ;;
		*) found=$(PATH=$PATH:/usr/sbin:/sbin command -v "$x" || true) ;;
		esac
		if [ -z "$found" ]; then
			missing="$missing $package"
			return
		fi
	done
}

want qemu-utils qemu-img qemu-io
want qemu-block-extra '/usr/lib/*/qemu/block-iscsi.so'
want libiscsi-bin iscsi-test-cu iscsi-inq
want tgt tgtd tgtadm
want open-isns-server isnsd
want open-isns-utils isnsadm
want e2fsprogs mke2fs
want fdisk sfdisk
want tshark tshark
want procps ps
if [ "${E2E_LONG:-}" ]; then
	want debootstrap debootstrap
fi

# The lab.
want iproute2 ip
want iputils-ping ping
want iperf3 iperf3
want tcpdump tcpdump
# Guests, and their image, which is made of packages that are downloaded and not installed.
want qemu-system-x86 qemu-system-x86_64
want xz-utils xz

if [ -z "$missing" ]; then
	exit 0
fi
if ! command -v apt-get >/dev/null; then
	echo "test/deps.sh: missing:$missing; install what has these commands (the names are Debian's)" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "test/deps.sh: missing packages; as root: apt-get install$missing" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
install() { apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install --no-install-recommends $missing </dev/null; }
if ! install; then
	apt-get -qq -o DPkg::Lock::Timeout=300 update
	install
fi
# Debian starts tgtd at once; the tests run their own on ports of their own.
