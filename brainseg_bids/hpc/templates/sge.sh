{% extends "elsewhere.sh" %}
{% block resources %}
#$ -N {{ name }}
#$ -S /bin/bash
{% if tasks %}
#$ -t 1-{{ tasks | length }}
{% if at_once %}
#$ -tc {{ at_once }}
{% endif %}
{% endif %}
#$ -pe {{ pe or "smp" }} {{ cpus }}
{% if mem|mib %}
# Of each CPU.
#$ -l mem_free={{ (mem|mib / cpus) | round(0, "ceil") | int }}M
{% endif %}
{% if time %}
#$ -l h_rt={{ time }}
{% endif %}
{% for option in options %}
#$ {{ option }}
{% endfor %}
#$ -j y
#$ -o "{{ logs }}"
{% endblock %}
