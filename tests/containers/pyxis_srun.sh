#!/bin/bash
# Stands in for srun with pyxis: runs every task of a step in a container, as pyxis and enroot document it.
#
#   - The root is read-only (ENROOT_ROOTFS_WRITABLE is off); /tmp is an empty tmpfs of the container's own.
#   - /proc, /sys and /dev are the node's. The home folder is not there. The user's id stays what it is.
#   - --container-mounts are mounted in the order in which they are given; their targets are made.
#   - The variables of the image (/etc/environment) win over the job's, but for those that --container-env names.
#
# Called as srun: REAL_SRUN names the real one, which starts `pyxis_srun.sh task ...` for each task on its node.
set -euo pipefail
me=$(readlink -f "$0")

outside() { # srun's own words; all options are --name=value, as the launcher writes them
    local image='' mounts='' workdir=/ keep='' options=()
    while [[ ${1:-} == -* ]]; do
        case $1 in
            --container-image=*) image=${1#*=} ;;
            --container-mounts=*) mounts=${1#*=} ;;
            --container-workdir=*) workdir=${1#*=} ;;
            --container-env=*) keep=${1#*=} ;;
            --no-container-mount-home) ;;
            --container-* | --no-container-*) echo "srun: pyxis: unknown option $1" >&2 && exit 1 ;;
            *) options+=("$1") ;;
        esac
        shift
    done
    if [ -z "$image" ]; then exec "$REAL_SRUN" "${options[@]}" "$@"; fi
    exec "$REAL_SRUN" "${options[@]}" "$me" task "$image" "$mounts" "$workdir" "$keep" "$@"
}

task() { # on the node, once for each task: a user namespace in which mounts may be made
    if [ ! -d "$1" ]; then
        printf 'slurmstepd: error: pyxis: %s\n' "container start failed with error code: 1" \
            "printing enroot log file:" "    [ERROR] No such file or directory: $1" >&2
        exit 1
    fi
    exec unshare --user --map-root-user --mount "$me" inside "$(id -u)" "$(id -g)" "$@"
}

inside() {
    local uid=$1 gid=$2 image=$3 mounts=$4 workdir=$5 keep=$6 mount outside inside flags line name part
    shift 6
    # The image belongs to root, who has no id in this namespace: nothing can be written into it, not even in an overlay.
    # So its folders are bound into an empty root, in which the targets of mounts can be made.
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/root
    mount --bind /mnt/root /mnt/root # pivot_root takes mount points only
    for part in "$image"/*; do
        name=${part##*/}
        if [ -L "$part" ]; then
            cp --no-dereference "$part" "/mnt/root/$name"
        elif [ -d "$part" ]; then
            mkdir "/mnt/root/$name"
            mount --bind "$part" "/mnt/root/$name"
            mount -o remount,bind,ro "/mnt/root/$name"
        fi
    done
    for name in proc sys dev; do mount --rbind "/$name" "/mnt/root/$name"; done
    mount -t tmpfs -o mode=1777 tmpfs /mnt/root/tmp
    for name in passwd group hosts resolv.conf; do cp "/etc/$name" "/mnt/$name"; done
    for name in passwd group hosts resolv.conf; do mount --bind "/mnt/$name" "/mnt/root/etc/$name"; done
    local IFS=,
    for mount in $mounts; do
        IFS=: read -r outside inside flags <<<"$mount"
        if [ -d "$outside" ]; then mkdir -p "/mnt/root$inside"; else mkdir -p "/mnt/root${inside%/*}" && touch "/mnt/root$inside"; fi
        mount --rbind "$outside" "/mnt/root$inside"
        if [[ +$flags+ == *+ro+* ]]; then mount -o remount,bind,ro "/mnt/root$inside"; fi
    done
    unset IFS
    mkdir /mnt/root/.old
    cd /mnt/root
    usr/sbin/pivot_root . .old # of the image, since Debian sid has none
    umount --lazy /.old
    rmdir /.old
    mount -o remount,bind,ro /
    cd "$workdir"
    while read -r line; do
        name=${line%%=*}
        if [[ ,$keep, != *,$name,* ]]; then export "$name=${line#*=}"; fi
    done </etc/environment
    exec unshare --user --map-user="$uid" --map-group="$gid" -- "$@"
}

case ${1:-} in
    task | inside) "$@" ;;
    *) outside "$@" ;;
esac
