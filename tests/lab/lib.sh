# shellcheck shell=bash disable=SC2034
# What every part of the lab shares: messages, where things are kept, what the host must have.

lab_src=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'lab: %s\n' "$*" >&2; }

# The lab's own failures leave with 125, so that they cannot be taken for COMMAND's.
die() { say "$@"; exit 125; }

# All worktrees of one clone share a cache: a root takes a minute and a gigabyte.
lab_cache_dir() {
    local git_dir
    if [[ -n ${FLOCK_LAB_CACHE:-} ]]; then
        printf '%s\n' "$FLOCK_LAB_CACHE"
    elif git_dir=$(git -C "$lab_src" -c safe.directory='*' rev-parse --path-format=absolute --git-common-dir 2>/dev/null); then
        printf '%s/.lab\n' "${git_dir%/.git}"
    else
        printf '%s/.lab\n' "${lab_src%/tests/lab}"
    fi
}

cache=$(lab_cache_dir)
runs=$cache/run

require_root() {
    [[ $(id -u) == 0 ]] || die "start the lab: uid $(id -u): only root may mount and boot a root: run it with sudo"
}

# Installs on the host what is missing there. Only Debian and its children are known to work.
require_host() {
    local missing=() want
    for want in mmdebstrap:mmdebstrap systemd-nspawn:systemd-container nsenter:util-linux setpriv:util-linux gpgv:gpgv; do
        command -v "${want%%:*}" >/dev/null || missing+=("${want##*:}")
    done
    [[ -e /usr/share/keyrings/debian-archive-trixie-stable.gpg || -e /usr/share/keyrings/debian-archive-trixie-stable.pgp ]] ||
        missing+=(debian-archive-keyring)
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "prepare the host: ${missing[*]}: not installed, and there is no apt-get here: install them by hand"
    say "installing on the host: ${missing[*]}"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"; } >&2 ||
        die "prepare the host: apt-get install ${missing[*]}: failed (see above): install them by hand"
}

# The host's cgroup v2 tree, wherever it is mounted (on a hybrid host it is not /sys/fs/cgroup).
cgroup2_mount() {
    local where
    where=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) ||
        die "find the cgroup v2 tree: no cgroup2 mount on this host: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified)"
    printf '%s\n' "$where"
}
