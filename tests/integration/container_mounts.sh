#!/bin/bash
# What pip needs on this machine, as read-only mounts, one FROM:TO:ro per line: certificates, pip's
# configuration, and the folders which that names. Images know nothing of it.
set -euo pipefail
settings=()
echo /etc/ssl/certs:/etc/ssl/certs:ro
if [ -f /etc/pip.conf ]; then
    settings+=(/etc/pip.conf)
    echo /etc/pip.conf:/etc/pip.conf:ro
fi
if [ -f "$HOME/.config/pip/pip.conf" ]; then
    settings+=("$HOME/.config/pip/pip.conf")
    echo "$HOME/.config/pip/pip.conf:/root/.config/pip/pip.conf:ro"
fi
[ ${#settings[@]} -gt 0 ] || exit 0
# An index's pages point at files beside them.
sed -nE 's#^ *(find-links|index-url|extra-index-url) *=##p' "${settings[@]}" | tr ' ' '\n' | sed -E 's#^file://##; s#/simple/?$##' \
    | sort -u | while read -r folder; do
    case "$folder" in /*) if [ -d "$folder" ]; then echo "$folder:$folder:ro"; fi ;; esac
done
