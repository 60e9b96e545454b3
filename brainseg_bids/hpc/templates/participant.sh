{% extends "group.sh" %}
{% block tasks %}
#SBATCH --array={{ array }}
{% endblock %}
{% block body %}
participants=(
{% for label in participants %}
{{ label | quote }}
{% endfor %}
)
participant=${participants[SLURM_ARRAY_TASK_ID]}
{{ super() -}}
{% endblock %}
{% block scratch %}
mkdir -p {{ scratch }}
{% endblock %}
