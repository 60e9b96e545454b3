#!/bin/bash
# {{ title }}. Run it with bash.
# Made by brainseg-bids {{ version }}.
set -euo pipefail
mkdir -p {{ logs | map("quote") | join(" ") }}
jobs=
{% for job in jobs %}
job=$(sbatch --parsable <<'END_OF_JOB'
{{ job.script }}
END_OF_JOB
)
jobs="$jobs:${job%%;*}"
echo "{{ job.name }}: job ${job%%;*}"
{% endfor %}
{% if last %}
# {{ last.name }}: also after failures, so that there is a summary of what went well.
sbatch --dependency="afterany$jobs" <<'END_OF_JOB'
{{ last.script }}
END_OF_JOB
{% endif %}
