#!/bin/bash
# {{ title }}. Run it with bash.
# Made by brainseg-bids {{ version }}.
set -euo pipefail
mkdir -p {{ logs | map("quote") | join(" ") }}
jobs=
{% for job in jobs %}
job=$({{ scheduler.submit }} <<'END_OF_JOB'
{{ job.script }}
END_OF_JOB
)
{% if scheduler.number %}
{{ scheduler.number }}
{% endif %}
jobs="$jobs{{ scheduler.each }}"
echo "{{ job.name }}: job $job"
{% if job.tasks %}
# Which participants each task has, for brainseg status.
cat > {{ job.log.parent | string | quote }}/"tasks_$job.txt" <<'END_OF_TASKS'
{{ job.tasks | join("\n") }}
END_OF_TASKS
{% endif %}
{% endfor %}
{% if last %}
# {{ last.name }}: also after failures, so that there is a summary of what went well.
{{ scheduler.program }} {{ scheduler.after }} <<'END_OF_JOB'
{{ last.script }}
END_OF_JOB
{% endif %}
