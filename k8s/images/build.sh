#!/usr/bin/env bash
# Build the images with buildah, without a daemon or Docker, with chroot isolation.
#
#   k8s/images/build.sh [--variant cpu|cuda] [--base IMAGE|mmdebstrap] [--revision GIT_HASH] [--target trainer|inference]... [-- BUILDAH_OPTION...]
#
# Without --base, the script pulls the Dockerfile's base image. If no registry answers, or with --base mmdebstrap, it builds a Debian root
# from packages instead. The build uses this machine's pip configuration and certificates (PIP_CONFIG_FILE or /etc/pip.conf, PIP_CERT,
# PIP_FIND_LINKS), and TORCH_CPU_INDEX if it is set; no layer contains them. The images are named
# localhost/softprompt-TARGET:VERSION[-cuda].
set -euo pipefail
cd "$(dirname "$0")/../.."

variant=cpu base="" revision="" targets=() options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --variant) variant="$2"; shift 2 ;;
        --base) base="$2"; shift 2 ;;
        --revision) revision="$2"; shift 2 ;;
        --target) targets+=("$2"); shift 2 ;;
        --) shift; options=("$@"); break ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
    esac
done
[ ${#targets[@]} -gt 0 ] || targets=(inference trainer)
version="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -1)"
revision="${revision:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}"
created="$(git log -1 --format=%cI 2>/dev/null || echo unknown)"  # not the build time, so that the same source gives the same image
suffix=""; [ "$variant" = cpu ] || suffix="-$variant"

debian_root() {  # Builds a Debian 12 image from packages. Its tag is the date, so it is rebuilt every day.
    local image root
    image="localhost/softprompt-debian:bookworm-$(date -u +%Y%m%d)"
    if ! buildah inspect --type image "$image" >/dev/null 2>&1; then
        root="$(mktemp -d)"
        echo "== a Debian root by mmdebstrap" >&2
        mmdebstrap --quiet --variant=minbase --include=ca-certificates --aptopt='APT::Install-Recommends "false"' \
            --dpkgopt=path-exclude=/usr/share/man/* --dpkgopt=path-exclude=/usr/share/doc/* \
            bookworm "$root/root.tar" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >&2
        local container
        container="$(buildah from scratch)"
        buildah add --quiet "$container" "$root/root.tar" / >&2
        buildah config --cmd /bin/bash "$container"
        buildah commit --quiet --rm "$container" "$image" >&2
        rm -rf "$root"
    fi
    echo "$image"
}

if [ -z "$base" ]; then
    base="$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)"
    base="$(timeout 60 buildah pull --quiet "docker://$base" 2>/dev/null)" || base=mmdebstrap
fi
[ "$base" != mmdebstrap ] || base="$(debian_root)"
echo "== base image: $base"

pip_conf="${PIP_CONFIG_FILE:-/etc/pip.conf}"
[ ! -s "$pip_conf" ] || options+=(--secret "id=pip_conf,src=$pip_conf")
[ ! -s "${PIP_CERT:-}" ] || options+=(--secret "id=ca_bundle,src=$PIP_CERT")
if [ -d "${PIP_FIND_LINKS:-}" ]; then  # wheels on this machine
    options+=(--volume "$PIP_FIND_LINKS:$PIP_FIND_LINKS:ro" --build-arg "PIP_FIND_LINKS=$PIP_FIND_LINKS")
fi
[ -z "${TORCH_CPU_INDEX:-}" ] || options+=(--build-arg "TORCH_CPU_INDEX=$TORCH_CPU_INDEX")

for target in "${targets[@]}"; do
    image="localhost/softprompt-$target:$version$suffix"
    echo "== $image"
    buildah build --isolation chroot --layers --target "$target" --tag "$image" --format oci \
        --build-arg "BASE_IMAGE=$base" --build-arg "VARIANT=$variant" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        --build-arg "CREATED=$created" --label "org.opencontainers.image.revision=$revision" \
        --label "org.opencontainers.image.created=$created" "${options[@]}" .  # labels repeated: buildah's layer cache ignores build arguments
    buildah images --format '{{.Name}}:{{.Tag}} {{.ID}} {{.Size}}' "$image"
done
