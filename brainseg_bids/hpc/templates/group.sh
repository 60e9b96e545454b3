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
{{ super() -}}
{% endblock %}
