{% extends "elsewhere.sh" %}
{% block resources %}
#BSUB -J "{{ name }}{{ "[1-" ~ tasks | length ~ "]" if tasks }}{{ "%" ~ at_once if tasks and at_once }}"
#BSUB -n {{ cpus }}
#BSUB -R "span[hosts=1]"
{% if mem|mib %}
#BSUB -R "rusage[mem={{ mem|mib }}MB]"
{% endif %}
{% if gpus %}
#BSUB -gpu "num={{ gpus }}"
{% endif %}
{% if time %}
#BSUB -W {{ time[:-3] }}
{% endif %}
{% for option in options %}
#BSUB {{ option }}
{% endfor %}
#BSUB -o "{{ logs }}/%J{{ "_%I" if tasks }}.log"
{% endblock %}
