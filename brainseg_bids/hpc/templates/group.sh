{% extends "job.sh" %}
{% block resources %}
{% block tasks %}{% endblock %}
#SBATCH --cpus-per-task={{ cpus }}
{% if mem %}
#SBATCH --mem={{ mem }}
{% endif %}
{% for option in site %}
#SBATCH {{ option }}
{% endfor %}
{% block requeue %}{% endblock %}
#SBATCH --chdir={{ folder }}
#SBATCH --open-mode=append
{% block signal %}{% endblock %}
{{ super() -}}
{% endblock %}
{% block body %}
{% for line in prologue %}
{{ line }}
{% endfor %}
mkdir -p {{ scratch }}
{% if handed_in %}
# By these brainseg status knows which job a run in a container was.
for name in SLURM_JOB_ID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID; do
    {% for prefix in handed_in %}
    [ -z "${!name:-}" ] || export "{{ prefix }}_$name=${!name}"
    {% endfor %}
done
{% endif %}
{{ super() -}}
{% endblock %}
