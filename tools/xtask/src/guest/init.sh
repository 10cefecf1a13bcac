#!/bin/busybox sh
# Process 1 of the initramfs: makes the root file system and hands over to stage2.sh in it.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
for word in $(cat /proc/cmdline); do
    case $word in
        uvn.init=*) init=${word#*=} ;;
        uvn.release=*) release=${word#*=} ;;
    esac
done

ninep=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$ninep,ro,cache=loose" root /lower
mount -t tmpfs -o size=75%,mode=755 upper /upper
mkdir /upper/upper /upper/work /root
mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work root /root

mkdir -p /root/guest "/root/usr/lib/modules/$release"
mount -t 9p -o "$ninep,ro,cache=loose" modules "/root/usr/lib/modules/$release"
mount -t 9p -o "$ninep,cache=none" share /root/guest
# To open a file of the overlay for writing copies it up.
while read -r file; do : >> "/root$file"; done < /root/guest/memory
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs -o mode=755 devtmpfs /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev shm /root/dev/shm
mount -t tmpfs -o mode=755,nosuid,nodev run /root/run
mount -t tmpfs -o mode=1777,nosuid,nodev tmp /root/tmp
mkdir -p /root/run/lock
mount -t cgroup2 -o nsdelegate cgroup2 /root/sys/fs/cgroup
mount -t bpf -o mode=700 bpf /root/sys/fs/bpf
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t securityfs securityfs /root/sys/kernel/security
ln -sf /proc/self/fd /root/dev/fd
ln -sf fd/0 /root/dev/stdin
ln -sf fd/1 /root/dev/stdout
ln -sf fd/2 /root/dev/stderr
hostname guest
echo guest > /root/etc/hostname
ifconfig lo 127.0.0.1 up
umount /proc /sys
exec switch_root /root /bin/sh /guest/stage2.sh "$init"
