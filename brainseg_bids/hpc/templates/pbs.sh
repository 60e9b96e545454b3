{% extends "elsewhere.sh" %}
{% block resources %}
#PBS -N {{ name }}
#PBS -S /bin/bash
{% if tasks | length > 1 %}
#PBS -J 0-{{ tasks | length - 1 }}{{ "%" ~ at_once if at_once }}
{% endif %}
#PBS -l select=1:ncpus={{ cpus }}{{ ":ngpus=" ~ gpus if gpus }}{{ ":mem=" ~ mem|mib ~ "mb" if mem|mib }}
{% if time %}
#PBS -l walltime={{ time }}
{% endif %}
{% for option in options %}
#PBS {{ option }}
{% endfor %}
#PBS -j oe
#PBS -o "{{ logs }}/"
{% endblock %}
