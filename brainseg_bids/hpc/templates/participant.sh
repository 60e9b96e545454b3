{% extends "group.sh" %}
{% block tasks %}
#SBATCH --array=0-{{ tasks | length - 1 }}{{ "%" ~ at_once if at_once }}
{% endblock %}
{% block body %}
{% include "tasks.sh" %}
{{ super() -}}
{% endblock %}
