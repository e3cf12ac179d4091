#!/bin/bash
# Installs what tests/slurm/cluster.py starts: Slurm's daemons and commands, munge, MariaDB. Starts no service.
# Only Debian's (or Ubuntu's) own packages, only as root, only where no other Slurm is. Nothing to do: 10 ms.
# Exit codes: 0 = everything is there; 3 = it cannot be installed here, and stderr says why in one line.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

programs=(slurmctld slurmd slurmdbd munged mariadbd sbatch squeue sacct sacctmgr scontrol
    mariadb-install-db mariadb-admin mariadb unshare nsenter setpriv)
packages=(slurmctld slurmd slurmdbd slurm-client munge mariadb-server mariadb-client util-linux)

cannot() {
    printf 'tests/slurm/install.sh: %s\n' "$*" >&2
    exit 3
}
missing() {
    local program
    for program in "${programs[@]}"; do
        command -v "$program" >/dev/null || printf '%s ' "$program"
    done
}

lacking=$(missing)
if [ -z "$lacking" ]; then exit 0; fi

# A login node has sbatch but no slurmctld; packages laid over a site's own Slurm would break it.
existing='this machine belongs to a cluster; test on that one with LAUNCHER_TEST_SLURM=existing'
if [ -e /etc/slurm/slurm.conf ]; then cannot "/etc/slurm/slurm.conf is there: $existing"; fi
if sbatch=$(command -v sbatch) && ! dpkg -S "$(readlink -f "$sbatch")" >/dev/null 2>&1; then
    cannot "$sbatch comes from no package: $existing"
fi
if ! command -v apt-get >/dev/null; then cannot "no apt-get here, and these are missing: $lacking"; fi
if [ "$(id -u)" != 0 ]; then
    cannot "missing: $lacking(not root; as root: apt-get install --no-install-recommends ${packages[*]})"
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d # what Debian asks before it starts a freshly installed daemon; 101 means no
made_policy=no
tidy() {
    rm -f "$log"
    if [ $made_policy = yes ]; then rm -f $policy; fi
}
trap tidy EXIT
if [ ! -e $policy ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi

fresh=()
for package in munge mariadb-server slurmctld slurmd slurmdbd; do
    if ! dpkg -s "$package" >/dev/null 2>&1; then fresh+=("${package%-server}"); fi
done

export DEBIAN_FRONTEND=noninteractive
started=$SECONDS
echo "tests/slurm/install.sh: installing ${packages[*]} (half a minute, 350 MB on disk)"
apt-get update -qq >>"$log" 2>&1 || true # an old index may still do; if not, the next command says so
if ! apt-get install -y -qq --no-install-recommends "${packages[@]}" >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    cannot "apt-get install failed (its last lines are above)"
fi
if [ -d /run/systemd/system ]; then # nor after the next boot
    for unit in "${fresh[@]}"; do systemctl --quiet disable "$unit" || true; done
fi

lacking=$(missing)
if [ -n "$lacking" ]; then cannot "installed, but still missing: $lacking(is this Debian 12 or newer?)"; fi
echo "tests/slurm/install.sh: installed in $((SECONDS - started)) s: $(slurmctld -V)"
