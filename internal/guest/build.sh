#!/bin/sh
# Makes a guest's files from Debian's packages: build.sh DIRECTORY [PACKAGE...]. It needs apt-get with lists of Debian
# packages, dpkg-deb, tar, xz and mke2fs, and no root. The directory must not exist; it is there, whole, once this has ended
# well. With "-" as the directory it only prints the packages and versions that it would take.
#
#   vmlinux      the kernel, unpacked: QEMU starts it by PVH, without the BIOS, without unpacking it in the guest
#   modules      names of the kernel modules that the init loads to find the root, in order; their files: boot/
#   root.img     ext4 with the packages and the kernel's modules, mounted read-only below a tmpfs
#   packages     what is in it
set -eu
out=$1
shift

# linux-image-amd64 and not -cloud: hosts that use a SAN have scsi_dh_alua, which the cloud kernel lacks.
wanted="linux-image-amd64 open-iscsi multipath-tools nfs-common fio sg3-utils
	busybox-static kmod e2fsprogs udev iproute2 mount util-linux coreutils dash bash $*"

# What packages depend on for installing, configuring or helper scripts; nothing here is ever installed, only unpacked.
needless='^(python3.*|libpython3.*|perl|perl-base|perl-modules-.*|libperl5.*|lib.*-perl|initramfs-tools.*|linux-base|linux-image-amd64|klibc-utils|libklibc|cpio|debconf|dpkg|tar|adduser|passwd|libpam-.*|ucf|usrmerge|media-types|sensible-utils|init-system-helpers|gcc-12-base|sysvinit-utils|readline-common|libgdbm.*)$'

# With an empty list of installed packages apt names all that these depend on.
list=$(apt-get -s -qq install --no-install-recommends -o Dir::State::status=/dev/null -o Debug::NoLocking=1 $wanted </dev/null |
	sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p' | sort)
if [ -z "$list" ]; then
	echo "apt-get can not find all packages: is this Debian 12, and was apt-get update run?" >&2
	exit 1
fi
packages=
for p in $list; do
	echo "${p%%=*}" | grep -Eq "$needless" || packages="$packages $p"
done
if [ "$out" = - ]; then
	printf '%s\n' $packages
	exit 0
fi

tmp=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
mkdir "$tmp/debs" "$tmp/root" "$tmp/boot"
echo "downloading $(echo $packages | wc -w) packages"
(cd "$tmp/debs" && apt-get -qq -o APT::Sandbox::User= -o Acquire::Retries=3 download $packages </dev/null)

echo "unpacking"
root=$tmp/root
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
for d in bin sbin lib lib64; do ln -s usr/$d "$root/$d"; done
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/mnt" "$root/root" "$root/var/lib" "$root/etc"
for deb in "$tmp"/debs/*.deb; do
	case $deb in
	*/linux-image-*)
		# Of the modules those for storage, file systems and networks: the others are 300 MB. m is where a module lies
		# below the kernel's directory.
		m=./lib/modules/*/kernel
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner --wildcards --no-wildcards-match-slash \
			'./boot/vmlinuz-*' './lib/modules/*/modules.*' "$m/fs" "$m/lib" "$m/crypto" "$m/arch" "$m/net" "$m/block" \
			"$m/drivers/block" "$m/drivers/char" "$m/drivers/md" "$m/drivers/net/*.ko" "$m/drivers/nvme" "$m/drivers/scsi/*.ko" \
			"$m/drivers/scsi/device_handler" "$m/drivers/target" "$m/drivers/virtio"
		rm -rf "$root"/lib/modules/*/kernel/net/wireless "$root"/lib/modules/*/kernel/net/mac80211 "$root"/lib/modules/*/kernel/net/bluetooth
		;;
	*)
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink --no-same-owner \
			--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' --exclude='./usr/share/info/*' \
			--exclude='./usr/share/lintian/*' --exclude='./usr/share/bash-completion/*' --exclude='./usr/lib/x86_64-linux-gnu/gconv/*' \
			--exclude='./usr/share/initramfs-tools/*' --exclude='./usr/lib/udev/hwdb.d/*'
		;;
	esac
done
rm -rf "$tmp/debs"

# Programs of the root, run without entering it: its own loader, with its own libraries.
within() { # within NAME-AS-CALLED PROGRAM ARG...
	name=$1 program=$2
	shift 2
	"$root/lib64/ld-linux-x86-64.so.2" --argv0 "$name" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu/ceph" "$root$program" "$@"
}
version=$(ls "$root/lib/modules")
within depmod /usr/bin/kmod -b "$root" "$version"

echo "kernel $version"
# The boot protocol's header says where the compressed ELF file is: setup sectors at 0x1f1, payload_offset at 0x248,
# payload_length at 0x24c, of which the last 4 bytes are its size when unpacked.
number() { od -An -t u"$3" -j "$2" -N "$3" "$1" | tr -d ' '; }
image=$(ls "$root"/boot/vmlinuz-*)
start=$((($(number "$image" 497 1) + 1) * 512 + $(number "$image" 584 4)))
length=$(($(number "$image" 588 4) - 4))
tail -c +$((start + 1)) "$image" | head -c $length | xz -dc >"$tmp/vmlinux"
rm -rf "$root/boot"

# What the init needs to reach the root, with what that depends on.
for m in virtio_pci virtio_console virtio_blk ext4 crc32c_generic overlay; do
	within modprobe /usr/bin/kmod -d "$root" -S "$version" --show-depends $m 2>/dev/null || true
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r file; do
	cp "$file" "$tmp/boot/"
	basename "$file"
done >"$tmp/modules"
grep -q '^virtio_blk.ko$' "$tmp/modules"

# What packages' scripts would have set up.
# Not busybox's shell: Debian's takes its own applets instead of programs.
ln -sf dash "$root/usr/bin/sh"
"$root/usr/bin/busybox" --list | while read -r applet; do
	[ -e "$root/usr/bin/$applet" ] || [ -e "$root/usr/sbin/$applet" ] || ln -s busybox "$root/usr/bin/$applet"
done
cat >"$root/etc/passwd" <<'F'
root:x:0:0:root:/root:/bin/sh
statd:x:101:65534::/var/lib/nfs:/bin/false
_rpc:x:102:65534::/run/rpcbind:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
F
cat >"$root/etc/group" <<'F'
root:x:0:
tty:x:5:
disk:x:6:
kmem:x:15:
dialout:x:20:
cdrom:x:24:
floppy:x:25:
tape:x:26:
audio:x:29:
video:x:44:
input:x:104:
sgx:x:105:
kvm:x:106:
render:x:107:
lp:x:7:
nogroup:x:65534:
F
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
echo guest >"$root/etc/hostname"
echo 'passwd: files
group: files
hosts: files dns
netgroup: files' >"$root/etc/nsswitch.conf"
ln -s /proc/self/mounts "$root/etc/mtab"
cat >"$root/etc/multipath.conf" <<'F'
defaults {
	user_friendly_names yes
	find_multipaths yes
}
F

cat >"$root/usr/sbin/guest-iscsi" <<'F'
#!/bin/sh
# guest-iscsi TARGET PORTAL...: log in to a target by the kernel's initiator through each portal, as one multipath device.
# INITIATOR is our name. It ends once as many paths are ready, and prints the device.
set -e
target=$1
shift
if ! pidof multipathd >/dev/null; then
	# Devices that are there already need no names: only what comes from now on.
	pidof systemd-udevd >/dev/null || /lib/systemd/systemd-udevd --daemon 2>/dev/null
	modprobe -a iscsi_tcp sd_mod sg scsi_dh_alua dm_multipath dm_service_time
	echo "InitiatorName=${INITIATOR:-iqn.2026-01.dozo.guest:$(hostname)}" >/etc/iscsi/initiatorname.iscsi
	iscsid
	multipathd
fi
for portal in "$@"; do
	iscsiadm -m node -T "$target" -p "$portal" -o new >&2
	iscsiadm -m node -T "$target" -p "$portal" --login >&2
done
tries=0
while [ "$(multipathd show paths format '%d %t %o' 2>/dev/null | grep -cE 'active +running')" -lt $# ]; do
	tries=$((tries + 1))
	if [ $tries = 100 ]; then
		multipathd show paths >&2
		exit 1
	fi
	sleep 0.1
done
multipathd show maps format %n | sed -n 's,^\([^ ]*\) *$,/dev/mapper/\1,p' | tail -n 1
F
chmod 755 "$root/usr/sbin/guest-iscsi"
# udev would read 10 MB of hardware names that nobody asks for, and rules for sessions.
rm -rf "$root/usr/lib/udev/hwdb.bin" "$root/etc/udev/hwdb.bin"
sh -c "cd '$root/usr/lib/udev/rules.d' && rm -f *-seat* *-uaccess* 78-sound-card* 75-net-description* 60-sensor* 60-evdev* 70-mouse* 70-touchpad* 70-joystick* 70-camera* 60-fido* 60-autosuspend*"
echo "/lib/x86_64-linux-gnu
/usr/lib/x86_64-linux-gnu
/usr/lib/x86_64-linux-gnu/ceph" >"$root/etc/ld.so.conf"
"$root/usr/sbin/ldconfig" -r "$root" 2>/dev/null || true

# Nothing may miss a library: packages that were thought needless are found out here, not in a test.
missing=0
for dir in bin sbin; do
	for file in "$root"/usr/$dir/*; do
		# Those with a loader: the rest are scripts, or linked statically.
		if [ -L "$file" ] || ! head -c 4096 "$file" | grep -aq ld-linux; then continue; fi
		if lost=$("$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu/ceph" --list "$file" 2>/dev/null | grep 'not found'); then
			echo "$file: $lost" >&2
			missing=1
		fi
	done
done
[ $missing = 0 ]

echo "root image"
used=$(du -sm "$root" | cut -f1)
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -F -t ext4 -O ^has_journal -E root_owner=0:0,lazy_itable_init=0 -m 0 -N 30000 -d "$root" "$tmp/root.img" $((used + used / 8 + 24))M >/dev/null
chmod -R u+w "$root"
rm -rf "$root"
printf '%s\n' $packages >"$tmp/packages"
chmod 755 "$tmp"
mv -T "$tmp" "$out"
trap - EXIT
