{% extends "job.sh" %}
{% block resources %}
#SBATCH --array={{ array }}
#SBATCH --cpus-per-task={{ cpus }}
#SBATCH --mem={{ mem }}
{% for option in site %}
#SBATCH {{ option }}
{% endfor %}
#SBATCH --chdir={{ folder }}
#SBATCH --open-mode=append
{{ super() -}}
{% endblock %}
{% block body %}
participants=(
{% for label in participants %}
{{ label | quote }}
{% endfor %}
)
participant=${participants[SLURM_ARRAY_TASK_ID]}
{% for line in prologue %}
{{ line }}
{% endfor %}
mkdir -p {{ scratch }}
{{ super() -}}
{% endblock %}
