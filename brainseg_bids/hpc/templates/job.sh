#!/bin/bash
#SBATCH --job-name={{ name }}
{% block resources %}
{% for option in options %}
#SBATCH {{ option }}
{% endfor %}
{% endblock %}
#SBATCH --output={{ log }}
{% block body %}
exec {{ command | lines }}
{% endblock %}
