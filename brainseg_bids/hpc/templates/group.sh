{% extends "job.sh" %}
{% block resources %}
#SBATCH --cpus-per-task={{ cpus }}
{% if mem %}
#SBATCH --mem={{ mem }}
{% endif %}
{% for option in site %}
#SBATCH {{ option }}
{% endfor %}
#SBATCH --chdir={{ folder }}
#SBATCH --open-mode=append
{{ super() -}}
{% endblock %}
{% block body %}
{% for line in prologue %}
{{ line }}
{% endfor %}
{{ super() -}}
{% endblock %}
