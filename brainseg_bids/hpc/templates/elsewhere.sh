#!/bin/bash
{% block resources %}{% endblock %}
cd {{ folder | quote }}
{% if tasks %}
{% include "tasks.sh" %}
{% endif %}
{% for line in prologue %}
{{ line }}
{% endfor %}
mkdir -p {{ scratch }}
exec {{ command | lines }}
