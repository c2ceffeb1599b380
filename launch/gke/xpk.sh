{% macro script() %}
set -eo pipefail
{% if job.folder %}
cd {{ job.folder | q }}
{% endif %}
{% for line in job.preparation %}
{{ line }}
{% endfor %}
IFS=, read -ra workers <<< "${TPU_WORKER_HOSTNAMES:-}"
place=()
if [ "${#workers[@]}" -gt 1 ]; then place=("--coordinator=${workers[0]}:8476" "--processes=${#workers[@]}" "--process=$TPU_WORKER_ID" --wait_seconds=3600); fi
exec {{ train_or_75 }} "${place[@]}"
{% endmacro %}
#!/bin/bash
# xpk puts the command in the middle of a line of its own, so the script for each host is one word on one line.
set -euo pipefail
xpk workload create --workload={{ job.name }} --cluster={{ job.gke.cluster | q }} {{ where }} \
    --tpu-type={{ job.cloud.tpu | q }} --num-slices=1 --docker-image={{ job.image | q }}{% if job.spot %} --spot{% endif %} --storage={{ job.gke.claim | q }} \
    --max-restarts={{ job.gke.restarts }} --restart-on-exit-codes={{ preempted }} --termination-grace-period-seconds={{ job.grace_seconds }} \
    --command={{ ("eval " ~ (script() | string | trim | one_word)) | q }}
