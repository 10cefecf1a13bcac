#!/bin/sh
# Becomes systemd, with guest.service as all that it should run, and logind.
units=/run/systemd/system
mkdir -p $units

# Everything that something else wants at boot slows it, or does things that the tests should not meet.
for unit in /etc/systemd/system/*.wants/* /lib/systemd/system/*.target.wants/*; do
    case ${unit##*/} in
        dbus.* | systemd-journald*.s* | systemd-logind.service | systemd-user-sessions.service | sys-kernel-*) ;;
        *) ln -sf /dev/null "$units/${unit##*/}" ;;
    esac
done
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
    systemd-remount-fs.service systemd-fsck-root.service modprobe@drm.service; do
    ln -sf /dev/null "$units/$unit"
done

cat > $units/guest.target << END
[Unit]
Requires=guest.service
Wants=dbus.socket systemd-logind.service
AllowIsolate=yes
END
cat > $units/guest.service << END
[Unit]
DefaultDependencies=no
After=dbus.socket systemd-logind.service systemd-user-sessions.service
Wants=systemd-user-sessions.service
[Service]
ExecStart=/bin/sh /guest/stage2.sh service
StandardOutput=journal
KillMode=process
# The command starts daemons, mounts and traces like a root shell would.
Delegate=yes
TasksMax=infinity
END
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nForwardToConsole=no\n' > /run/systemd/journald.conf.d/guest.conf
exec /lib/systemd/systemd --unit=guest.target
