#!/bin/bash
# What each host of the slice runs. Its number and the addresses of all are in the machine's metadata.
set -eo pipefail
cd "$HOME"/{{ job.name }}
{% for line in job.preparation %}
{{ line }}
{% endfor %}

metadata() {
    curl --silent --show-error --fail --retry 5 --header 'Metadata-Flavor: Google' \
        "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
endpoints="$(metadata worker-network-endpoints)"
number="$(metadata agent-worker-number)"
IFS=, read -ra workers <<< "$endpoints" # each an address, or name:number:address
place=()
if [ "${#workers[@]}" -gt 1 ]; then
    place=("--coordinator=${workers[0]##*:}:8476" "--processes=${#workers[@]}" "--process=$number" --wait_seconds=1800)
fi
exec {{ train }} "${place[@]}"
