#!/bin/sh
# Process 1 in the guest's root file system, or with --systemd the program of guest.service ("$1" is "service" then).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8 USER=root
# In one go: each module that the kernel has to ask for takes a second without KVM, and nftables starts a transaction
# again for each.
modules='tun vrf vxlan veth bridge nft_chain_nat nft_ct nft_nat nft_masq nft_log nft_limit nft_fib_inet nft_reject_inet nft_connlimit
    nf_conntrack_netlink nfnetlink_log nf_log_syslog'
case $1 in
    shell | systemd) modprobe -a $modules ;;
esac
# Whoever examines a guest that hangs: in memory, with programs of its own.
case $1 in
    shell | systemd)
        mkdir -p /run/examine/bin
        cp /bin/busybox /guest/examine.sh /run/examine
        /run/examine/busybox --install -s /run/examine/bin
        until [ -c /dev/vport0p3 ]; do sleep 0.1; done
        PATH=/run/examine/bin /run/examine/busybox sh /run/examine/examine.sh < /dev/null > /dev/null 2>&1 &
        ;;
esac
case $1 in
    systemd) exec /bin/sh /guest/systemd.sh ;;
esac

# Pipes, because a port can be opened once only, and /dev/stdout opens it again.
mkfifo /run/guest.out /run/guest.err
busybox cat < /run/guest.out > /dev/vport0p1 & out=$!
busybox cat < /run/guest.err > /dev/vport0p2 & err=$!
/bin/sh /guest/command.sh < /dev/null > /run/guest.out 2> /run/guest.err &
wait $!
code=$?
# What the command left in the background may keep the pipes open.
(sleep 2; kill $out $err) 2> /dev/null &
wait $out $err
echo $code > /guest/exit
busybox poweroff -f
