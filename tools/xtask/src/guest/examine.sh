# Waits in memory for a word from the host, then tells what every process here waits for. The host's files may be what
# hangs: busybox is a copy, and what comes from the host runs after all that needs none of it, with a limit.
exec 3<> /dev/vport0p3
read -r _ <&3
exec >&3 2>&1

echo "=== memory and load"
cat /proc/loadavg
head -n 3 /proc/meminfo

# A user's process, or a thread of the kernel that is stuck.
task() {
    read -r status < "$1/stat" || return
    rest=${status##*) }
    state=${rest%% *}
    read -r name < "$1/comm"
    wchan= syscall=
    read -r wchan < "$1/wchan"
    read -r syscall < "$1/syscall"
    echo "${1#/proc/} $name: $state, waits in $wchan, system call $syscall"
    while read -r line; do echo "        ${line#*] }"; done < "$1/stack"
}
echo "=== processes: state, wait channel, system call, kernel stack"
for process in /proc/[0-9]*; do
    words=$(tr '\0' ' ' < "$process/cmdline")
    if [ -n "$words" ]; then
        echo "--- ${process#/proc/}: $words"
        for thread in "$process"/task/*; do task "$thread"; done
    else
        read -r status < "$process/stat" || continue
        case ${status##*) } in D*) task "$process" ;; esac
    fi
done 2> /dev/null

echo "=== kernel log"
dmesg | tail -n 100

PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:$PATH
seen=
for process in /proc/[0-9]*; do
    netns=$(readlink "$process/ns/net")
    case "$seen" in *"<$netns>"*) continue ;; esac
    seen="$seen<$netns>"
    for command in "ip -brief address" "ip rule" "ip route show table all" "ip neighbour" "ip -s link" "ss -tuanpem" "ss -xp" \
        "nft list ruleset"; do
        echo "=== $netns (of process ${process#/proc/}): $command"
        timeout 10 /usr/bin/nsenter --net="$process/ns/net" $command
    done
done
for log in /tmp/*.log /var/log/slurm/*.log; do
    [ -e "$log" ] || continue
    echo "=== $log"
    timeout 10 tail -n 60 "$log"
done
echo "=== end"
