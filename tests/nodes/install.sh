#!/bin/sh
# Debian packages that the tests on real nodes need, where they are missing and root may install them; starts no service.
set -eu
missing=""
for pair in ip:iproute2 sshd:openssh-server pdsh:pdsh slurmd:slurm-wlm munged:munge; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed here:$missing; the tests that need them are skipped"
    exit 0
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    # Installing must not start sshd or Slurm on this machine itself.
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -q || echo "no package lists; what is missing stays so"
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing \
    || echo "could not install$missing; the tests that need them are skipped"
