#!/bin/bash
# Asks for the slice, where it was not asked for or was taken back, and waits until it is there.
set -euo pipefail
state() { gcloud compute tpus queued-resources describe {{ job.name }} {{ where }} --format='value(state.state)'; }

found="$(state 2> /dev/null || true)"
if [ "$found" = FAILED ] || [ "$found" = SUSPENDED ]; then
    gcloud compute tpus queued-resources delete {{ job.name }} --force --quiet {{ where }}
    found=""
fi
if [ -z "$found" ]; then
    gcloud compute tpus queued-resources create {{ job.name }} --node-id={{ job.name }} {{ where }} \
        --accelerator-type={{ job.cloud.tpu | q }} --runtime-version={{ job.cloud.runtime | q }}{% if job.spot %} --spot{% endif %}

fi
while [ "$found" != ACTIVE ]; do
    found="$(state)"
    echo "queued resource {{ job.name }}: $found"
    if [ "$found" = FAILED ] || [ "$found" = SUSPENDED ]; then exit 1; fi
    if [ "$found" != ACTIVE ]; then sleep 30; fi
done
